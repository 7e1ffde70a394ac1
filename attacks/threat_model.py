"""What an attacker may do: the description that is stored, and hashed, with every robustness figure."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class ThreatModel:
    """A hashable, serialisable description of the attacker; figures under different threat models are not
    comparable.

    Attributes:
        modality: What may change: `"image"`, `"text"` or `"both"`.
        norm: Norm of the pixel perturbation; only `"linf"` exists here. None when pixels are untouched.
        epsilon: Largest perturbation of one pixel, in [0, 1] pixel units. None when pixels are untouched.
        max_change_share: Largest share of a text's words that may change. None when words are untouched.
        max_candidates: Most substitutes tried for one word. None when words are untouched.
        min_cosine: Smallest cosine of a word and its substitute, in the table's space. None when words are
            untouched.
        synonyms: Digest of the table the substitutes come from. None when words are untouched.
        access: `"white-box"` (gradients of the attacked model), `"transfer"` (gradients of another) or
            `"black-box"`.
        knowledge: What else the attacker knows; here the attacks see no labels unless their objective does.
    """

    modality: Literal["image", "text", "both"]
    norm: Literal["linf"] | None = None
    epsilon: float | None = None
    max_change_share: float | None = None
    max_candidates: int | None = None
    min_cosine: float | None = None
    synonyms: str | None = None
    access: Literal["white-box", "transfer", "black-box"] = "white-box"
    knowledge: str = "objective"

    def __post_init__(self) -> None:
        if self.modality not in ("image", "text", "both"):
            raise ValueError(f"modality is {self.modality!r}; expected 'image', 'text' or 'both'.")
        if self.modality != "text" and self.epsilon is None:
            raise ValueError(
                f"A threat model of modality {self.modality!r} needs epsilon, in [0, 1] pixel units."
            )
        if self.modality != "image" and self.max_change_share is None:
            raise ValueError(
                f"A threat model of modality {self.modality!r} needs max_change_share, a share of words."
            )
        check_epsilon(self.epsilon or 0.0)

    def __str__(self) -> str:
        pixels = (
            f"{self.norm} epsilon {self.epsilon:.4g} ({255 * self.epsilon:.3g}/255)"
            if self.epsilon is not None
            else ""
        )
        words = (
            f"at most {self.max_change_share:.0%} of the words" if self.max_change_share is not None else ""
        )
        return f"{self.access} attack on {self.modality}: " + ", ".join(filter(None, [pixels, words]))

    def combined_with(self, other: "ThreatModel") -> "ThreatModel":
        """The attacker who may do what `self` (on one modality) and `other` (on the other one) may do."""
        mine = {name: value for name, value in self.to_dict().items() if value is not None}
        return ThreatModel.from_dict({**other.to_dict(), **mine, "modality": "both"})

    def to_dict(self) -> dict[str, Any]:
        """Plain fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ThreatModel":
        """Rebuild from `to_dict`.

        Raises:
            ValueError: If a key is not a field of a threat model.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"Unknown threat model fields {unknown}; known fields are {sorted(known)}.")
        return cls(**values)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that are equal exactly when all fields are."""
        canonical = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def check_epsilon(epsilon: float) -> None:
    """Refuse a radius outside [0, 1] pixels.

    Raises:
        ValueError: If it is negative, above one or not a number.
    """
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(
            f"epsilon is {epsilon}; expected a radius in [0, 1] pixel units. "
            "Divide grey levels by 255, and values in normalised space by 1 / image_std."
        )
