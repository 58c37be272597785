"""Running a network on one image: whole or in tiles, once or on its eight flips and rotations."""
