"""What every long training needs: a device, ranks, a stream of samples, a folder, and a list of what it left out."""
