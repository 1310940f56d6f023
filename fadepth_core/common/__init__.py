"""Shared basics of fadepth_core: samples, framing, colour, files and errors. Imports no other package of fadepth_core."""
