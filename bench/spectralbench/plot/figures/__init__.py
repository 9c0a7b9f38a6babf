"""The figures: one file each, which is its name, found by walking this folder for its `FIGURE`."""
