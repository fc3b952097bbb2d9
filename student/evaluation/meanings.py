"""What the measures of an evaluation mean, for people: in reports, cards and the command's help."""

from __future__ import annotations

MEANINGS = {
    "cosine": "mean cosine of a text's vector with the teacher's own; FC1 alone learns to point "
    "there, against one of several teachers with that teacher's columns",
    "spearman": "rank correlation of all pairwise similarities with the teacher's",
    "pair_order": "share of pairs of text pairs that student and teacher put in the same order; "
    "0.5 is chance",
    "recall@1": "share of texts whose nearest neighbour is the teacher's",
    "recall@10": "share of the teacher's ten nearest neighbours that are among the student's ten",
}
"""By the name that a measure has in an evaluation."""
