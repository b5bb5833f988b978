"""Image sets, shards and views of images."""
