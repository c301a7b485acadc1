"""The commands: `ceg` and its parts, a file each, and the options that they share."""
