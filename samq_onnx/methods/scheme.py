# SPDX-License-Identifier: Apache-2.0
"""How many bits everything gets: two widths for the whole model, others for single sites where a user says so."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping

from samq_onnx.documents import brief
from samq_onnx.errors import UserError

__all__ = ["ATTENTION_ROLES", "LINEAR_ROLES", "Scheme", "SiteBits", "Widths", "check_site_bits"]

LEAST, MOST = 2, 8
PATTERN = re.compile(r"w(\d)a(\d)")
PRODUCT_ROLES = ("input", "weight")
LINEAR_ROLES = (*PRODUCT_ROLES, "output")
ATTENTION_ROLES = ("q", "k", "v", "probabilities")
CONV_OUTPUT_BITS = 8  # a convolution needs codes at its output to run in integers; 8 bits cost no accuracy

SiteBits = Mapping[str, Mapping[str, int]]
"""Name of a linear or an attention -> role of a tensor there -> bits."""


@dataclasses.dataclass(frozen=True)
class Widths:
    """Bits of the codes of weights and of activations."""

    weight: int
    activation: int

    @classmethod
    def parse(cls, text: str) -> Widths:
        """Those that a word such as ``w8a8`` says.

        Raises:
            UserError: it says none from 2 to 8.
        """
        found = PATTERN.fullmatch(str(text).lower())
        widths = [int(number) for number in found.groups()] if found else []
        if not widths or min(widths) < LEAST or max(widths) > MOST:
            raise UserError(f"unknown width {text!r}; give wXaY, X bits of weights and Y of activations, each 2 to 8")
        return cls(*widths)

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation}"


@dataclasses.dataclass(frozen=True)
class Scheme:
    """The bits of one model.

    Attributes:
        widths: of everything that ``sites`` does not name.
        strict: outputs of convolutions, too, are as wide as other activations.
        sites: other widths of single sites.
    """

    widths: Widths
    strict: bool = False
    sites: SiteBits = dataclasses.field(default_factory=dict)

    def bits(self, site: str, role: str) -> int:
        """Of a tensor: one of `LINEAR_ROLES` at a linear, of `ATTENTION_ROLES` at an attention."""
        chosen = self.sites.get(site, {}).get(role)
        if chosen is not None:
            return chosen
        if role == "weight":
            return self.widths.weight
        return CONV_OUTPUT_BITS if role == "output" and not self.strict else self.widths.activation

    @property
    def narrowest_weight(self) -> int:
        """The least bits that any weight may have."""
        return min([self.widths.weight, *(roles["weight"] for roles in self.sites.values() if "weight" in roles)])

    def check_sites(
        self,
        products: Iterable[str],
        convolutions: Iterable[str],
        attentions: Iterable[str],
        kept: Mapping[str, str],
    ) -> None:
        """Refuse widths of sites that there are not.

        Args:
            products: linears whose outputs have no codes. kept: linear that stays float -> why.

        Raises:
            UserError: names the first one.
        """
        roles: dict[str, tuple[str, ...]] = {
            **dict.fromkeys(products, PRODUCT_ROLES),
            **dict.fromkeys(convolutions, LINEAR_ROLES),
        }
        roles |= dict.fromkeys(attentions, ATTENTION_ROLES)
        for site, bits in self.sites.items():
            if site in kept:
                raise UserError(f"site {brief(site)!r} stays float: {kept[site]}; leave it out of the widths of sites")
            if site not in roles:
                near = difflib.get_close_matches(site, roles, 1)
                hint = f"did you mean {near[0]!r}" if near else "a plan (--plan-out) has all names"
                raise UserError(f"no site has the name {brief(site)!r}; {hint}")
            unknown = sorted(set(bits) - set(roles[site]))
            if unknown:
                raise UserError(f"site {brief(site)!r} has no {unknown[0]!r}; it has {', '.join(roles[site])}")


def check_site_bits(value: object, where: str) -> SiteBits:
    """What a JSON file says of the bits of sites.

    Args:
        value: as JSON holds it. where: what messages call the file.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: wanted an object, site -> role -> bits")
    for site, roles in value.items():
        if not isinstance(roles, dict):
            raise UserError(f"{where}: {brief(site)!r}: wanted an object, role -> bits")
        for role, bits in roles.items():
            if role not in (*LINEAR_ROLES, *ATTENTION_ROLES):
                known = ", ".join((*LINEAR_ROLES, *ATTENTION_ROLES))
                raise UserError(f"{where}: {brief(site)!r}: unknown role {brief(role)!r}; known are {known}")
            if not isinstance(bits, int) or isinstance(bits, bool) or not LEAST <= bits <= MOST:
                raise UserError(f"{where}: {brief(site)!r}, {role}: wanted {LEAST} to {MOST} bits, got {brief(bits)}")
    return value
