"""The worklist: which deferred regions people should look at first; found, written to a folder and read from it."""
