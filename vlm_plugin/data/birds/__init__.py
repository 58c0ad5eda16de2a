"""Synthetic birds: small pictures with captions whose truth is known.

A bird is drawn from eight attributes (`ATTRIBUTES`), and every caption names some of them. So anything a model says
about a picture can be checked against the truth, on a laptop and without downloading a data set. `make_birds` writes
the folder layout that AttnGAN's users have for CUB-200-2011, and `BirdTruth` reads the attributes back.

A class ("species") is a combination of all attributes but the background. Which split a class belongs to depends on the
combination alone, never on the seed or the sizes: no training set ever holds a class of a validation or test set.

`attributes` says what a bird can look like, `drawing` draws one, `captions` writes and reads its sentences, `make`
plans and writes a set, `truth` tells which captions are true of which pictures.
"""

from vlm_plugin.data.birds.attributes import ATTRIBUTES
from vlm_plugin.data.birds.captions import said_by, swap_caption, swap_word
from vlm_plugin.data.birds.make import make_birds
from vlm_plugin.data.birds.truth import BirdTruth, find_truth, true_pairs

__all__ = [
    "ATTRIBUTES",
    "BirdTruth",
    "find_truth",
    "make_birds",
    "said_by",
    "swap_caption",
    "swap_word",
    "true_pairs",
]
