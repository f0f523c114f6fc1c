"""The machinery of the procedural data set ``scenes``: one stage of the generator per file.

In the order of the flow: ``options`` (knobs and presets), ``vocabulary`` (what labels look
like: ``shapes`` x ``textures``), ``marginals`` (how frequent labels are), ``cooccurrence``
(which appear together), ``owners`` (how one owner differs from another), ``census`` (which
images there are), ``layout`` (where objects lie), ``visibility`` (what of them is seen, which
decides the truth), ``world`` (all of that for one configuration), ``backgrounds``, ``style`` and
``rendering`` (pixels).

Every number comes from ``fedmlic.seeds`` under its own purpose, so one knob leaves the draws of
all others alone.
"""
