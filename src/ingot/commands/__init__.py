"""The doit sub-commands, one file each."""
