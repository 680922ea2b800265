"""Image files, output folders and shards, the manifest, verification."""
