"""The machinery of the data set ``emoji_scenes``, one stage per file.

In the order of the flow: ``options`` (knobs and presets), ``kinds`` (labels, and which emoji show them),
``art`` (pictures: where they lie, whether they are the known ones, how they are scaled), ``plan`` (what is
in every image, and what of it can be seen), ``painting`` (pixels). Backgrounds, light and the looks of
owners are those of ``fedmlic.scenes``.
"""
