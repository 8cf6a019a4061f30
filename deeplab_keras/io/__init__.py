"""Files and the terminal: atomic writes, guarded reading of foreign files, the progress line."""
