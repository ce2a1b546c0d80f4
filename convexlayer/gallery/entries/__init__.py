"""One module an entry of the gallery; its file name is the entry's name."""
