"""Secure aggregation: the aggregator learns the weighted sum of the updates and nothing else.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
CCS 2017, figure 4, with the consistency check and the signed keys of its active-adversary variant.
Every site masks its update twice: with masks agreed on pairwise, which cancel in the sum, and with
one of its own. Shamir shares let the others remove the pairwise masks of a site that dropped out,
or the own mask of one that did not, and never both.

Nothing here knows how messages travel: all of them are bytes.
"""

from training.secagg.aggregator import Aggregate, Aggregator
from training.secagg.context import Context, default_threshold
from training.secagg.participant import Participant

__all__ = ["Aggregate", "Aggregator", "Context", "Participant", "default_threshold"]
