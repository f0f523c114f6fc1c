"""What is shown of a federation, a run or a data set: tables, figures and pages."""
