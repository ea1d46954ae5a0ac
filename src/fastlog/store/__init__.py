"""A directory of topics: what there is, how each partition is opened, kept up, and backed up."""
