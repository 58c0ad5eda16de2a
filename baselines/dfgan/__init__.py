"""DF-GAN (Tao et al., arXiv 2008.05865): networks, losses, trainer and entry point."""
