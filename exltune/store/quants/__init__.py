"""EXL3 directories on the disk: found, read and checked to belong to a model."""
