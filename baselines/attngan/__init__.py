"""AttnGAN (Xu et al., arXiv 1711.10485): networks, losses, trainer and entry point."""
