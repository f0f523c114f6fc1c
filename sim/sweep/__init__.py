"""From a question to a table: many runs of one study, played side by side in processes that stay alive."""
