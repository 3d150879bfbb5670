"""Detection in files: the images and videos that a command line means, and annotated copies."""
