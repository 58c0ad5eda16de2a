"""Complete text-to-image trainers that use the drop-in loss, one package per family."""
