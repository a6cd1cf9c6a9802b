"""One file a kind of target; the file name is the kind."""
