"""The command line and the pipeline behind it: the only package that knows all the others."""
