# SPDX-License-Identifier: Apache-2.0
"""Tell the attention sites of SAM apart by the shapes of their operands.

Relative position tables mark the encoder; a site there is windowed if its batch holds more than its heads. Without
tables, the token count of the image marks the decoder: queries of other tokens read the image, those of the image are
updated, and equal ones are self-attention among tokens. The last reading with no update behind it is final.

Counts are numbers or names (`passes.lift.dims`). Of two that update each other the image's is the larger one, or if
that is not known the one that attends to nothing of its own, or the one that is a number, or is read more often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from samq_onnx.passes.lift.attention import Match
from samq_onnx.passes.lift.dims import Dim, divided
from samq_onnx.passes.lift.views import dims_of

__all__ = ["DECODER_KINDS", "TOKEN_TO_IMAGE_KINDS", "site_kinds"]

TOKEN_TO_IMAGE_KINDS = frozenset({"decoder_token_to_image", "decoder_final"})
DECODER_KINDS = TOKEN_TO_IMAGE_KINDS | {"decoder_self", "decoder_image_to_token"}


class _Site:
    """Sizes of an attention: batch (with heads) and tokens of its queries, tokens of its keys; None if not known."""

    def __init__(self, match: Match) -> None:
        q, columns = (dims_of(value) for value in match.scores.inputs)
        self.relative = match.tables is not None
        self.batch = q[0] if q else None
        self.queries = q[-2] if q else None
        self.keys = columns[-1] if columns else None


def _image_tokens(sites: Sequence[_Site]) -> Dim:
    """How many tokens the image has that others read and update, None where there is no such image."""
    pairs = Counter((site.queries, site.keys) for site in sites if not site.relative)
    for one, two in pairs:
        if one is None or two is None or one == two or (two, one) not in pairs:
            continue
        if isinstance(one, int) and isinstance(two, int):
            return max(size for pair in pairs for size in pair if isinstance(size, int))
        alone = [(size, size) not in pairs for size in (one, two)]
        if alone[0] != alone[1]:
            return one if alone[0] else two
        if isinstance(one, int) != isinstance(two, int):
            return one if isinstance(one, int) else two
        return two if pairs[one, two] >= pairs[two, one] else one
    return None


def _is_windowed(site: _Site, others: Sequence[_Site]) -> bool:
    """Whether its batch holds more than that of another site; where that is not known, whether it has fewer tokens."""
    for other in others:
        if isinstance(site.batch, int) and isinstance(other.batch, int):
            windowed = site.batch > other.batch
        elif site.batch == other.batch or site.batch is None or other.batch is None:
            windowed = False
        else:
            ratio = divided(site.batch, other.batch)
            fewer = isinstance(site.queries, int) and isinstance(other.queries, int) and site.queries < other.queries
            windowed = ratio > 1 if isinstance(ratio, int) else fewer
        if windowed:
            return True
    return False


def site_kinds(matches: Sequence[Match]) -> list[str]:
    """The kind of each matched attention, in order; generic where the shapes do not tell."""
    sites = [_Site(match) for match in matches]
    relative = [site for site in sites if site.relative]
    image = _image_tokens(sites)
    kinds = []
    for site in sites:
        if site.relative:
            kinds.append("encoder_window" if _is_windowed(site, relative) else "encoder_global")
        elif image is None or site.queries is None or site.keys is None:
            kinds.append("generic")
        elif site.queries == site.keys:
            kinds.append("generic" if site.queries == image else "decoder_self")
        else:
            kinds.append("decoder_image_to_token" if site.queries == image else "decoder_token_to_image")
    for index in range(len(kinds) - 1, -1, -1):
        if kinds[index] == "decoder_image_to_token":
            break
        if kinds[index] == "decoder_token_to_image":
            kinds[index] = "decoder_final"
            break
    return kinds
