"""Software renderer and the data sets rendered with it, with exact depth and camera motion."""
