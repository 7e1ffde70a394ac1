"""What an attacker may do: the description that is stored, and hashed, with every robustness figure."""

import difflib
import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import yaml

Modality: TypeAlias = Literal["image", "text", "both"]
Norm: TypeAlias = Literal["linf", "l2"]
WordEdits: TypeAlias = Literal["synonyms", "typos", "invisible"]
Access: TypeAlias = Literal["white-box", "transfer", "black-box"]

_IMAGE_PRESETS = ("thesis", "linf-1", "linf-2", "linf-4", "linf-8", "l2-0.5", "l2-1", "l2-3")
_TEXT_PRESETS = ("words-1", "words-20pct", "typos-1", "invisible-1")
PRESETS = (*_IMAGE_PRESETS, *_TEXT_PRESETS, "joint-thesis-words-20pct", "joint-linf-4-words-20pct")
"""Names to try first; any other number may stand in the same place, such as `linf-0.5` or `words-2`."""


@dataclass(frozen=True)
class ThreatModel:
    """A hashable, serialisable description of the attacker; figures under different threat models are not
    comparable.

    Attributes:
        modality: What may change: `"image"`, `"text"` or `"both"`.
        norm: How a pixel perturbation is measured: `"linf"`, its largest entry, or `"l2"`, its Euclidean
            norm over all pixels, channels and images of the example. None when pixels are untouched.
        epsilon: Largest perturbation in that norm, of pixels in [0, 1]. None when pixels are untouched.
        max_change_share: Largest share of a text's words that may change, rounded down, but one word always.
            None for no such limit.
        max_changed_words: Most words of a text that may change. None for no such limit.
        word_edits: What may become of a word: a synonym, a word with one misspelling (`"typos"`), or a word
            with characters that cannot be seen (`"invisible"`). None when words are untouched.
        max_candidates: Most substitutes tried for one word. None for no limit.
        min_cosine: Smallest cosine of a word and its synonym, in the table's space. None for no limit.
        synonyms: Digest of the table the substitutes come from.
        access: `"white-box"` (gradients of the attacked model), `"transfer"` (gradients of another) or
            `"black-box"` (its answers only).
        knowledge: What else the attacker knows; `"objective"`: the loss of the true label.

    Raises:
        ValueError: If a field is unknown, out of range or missing; the message says which.
    """

    modality: Modality
    norm: Norm | None = None
    epsilon: float | None = None
    max_change_share: float | None = None
    max_changed_words: int | None = None
    word_edits: WordEdits | None = None
    max_candidates: int | None = None
    min_cosine: float | None = None
    synonyms: str | None = None
    access: Access = "white-box"
    knowledge: str = "objective"

    def __post_init__(self) -> None:
        _check_choice("modality", self.modality, get_args(Modality))
        _check_choice("access", self.access, get_args(Access))
        if self.modality == "text":
            self._refuse("pixels", "norm", "epsilon")
        else:
            self._check_image()
        if self.modality == "image":
            self._refuse(
                "words", "max_change_share", "max_changed_words", "word_edits", "max_candidates", "min_cosine"
            )
        else:
            self._check_text()

    def _check_image(self) -> None:
        if self.epsilon is None or self.norm is None:
            raise ValueError(
                f"A threat model of modality {self.modality!r} needs norm ('linf' or 'l2') and epsilon, "
                "for pixels in [0, 1]."
            )
        _check_choice("norm", self.norm, get_args(Norm))
        check_epsilon(self.epsilon, self.norm)

    def _check_text(self) -> None:
        if self.max_change_share is None and self.max_changed_words is None:
            raise ValueError(
                f"A threat model of modality {self.modality!r} needs max_change_share, a share of words in "
                "[0, 1], or max_changed_words, a number."
            )
        if self.max_change_share is not None and not 0 <= self.max_change_share <= 1:
            raise ValueError(f"max_change_share is {self.max_change_share}; expected a share, in [0, 1].")
        if self.max_changed_words is not None and self.max_changed_words < 0:
            raise ValueError(
                f"max_changed_words is {self.max_changed_words}; expected a number of words >= 0."
            )
        _check_choice("word_edits", self.word_edits, get_args(WordEdits))

    def _refuse(self, untouched: str, *names: str) -> None:
        if given := [name for name in names if getattr(self, name) is not None]:
            raise ValueError(
                f"A threat model of modality {self.modality!r} leaves {untouched} alone, so it takes no "
                f"{', '.join(given)}; use modality 'both'."
            )

    def __str__(self) -> str:
        parts = []
        if self.epsilon is not None:
            parts.append(f"{self.norm} epsilon {self.epsilon:.4g} ({255 * self.epsilon:.3g}/255)")
        if self.max_change_share is not None:
            parts.append(f"at most {self.max_change_share:.0%} of the words")
        if self.max_changed_words is not None:
            parts.append(f"at most {self.max_changed_words} words")
        if self.word_edits is not None:
            parts.append(self.word_edits)
        return f"{self.access} attack on {self.modality}: " + ", ".join(parts)

    def word_budget(self, text: str) -> int:
        """Most words of a text that may change; see `count_words` for what a word is."""
        if self.modality == "image":
            return 0
        words = count_words(text)
        share = self.max_change_share
        budgets = [words if self.max_changed_words is None else self.max_changed_words]
        if share is not None:
            # 0.1 * 30 must not fall short of 3; and texts of up to four words are attacked at all.
            budgets.append(max(int(share * words + 1e-9), 1) if share > 0 else 0)
        return min(budgets)

    def combined_with(self, other: "ThreatModel") -> "ThreatModel":
        """The attacker who may do what `self` (on one modality) and `other` (on the other one) may do."""
        mine = {name: value for name, value in self.to_dict().items() if value is not None}
        return ThreatModel.from_dict({**other.to_dict(), **mine, "modality": "both"})

    def allows(self, other: "ThreatModel") -> bool:
        """Whether everything that `other` may do to an example, `self` may do; access and knowledge aside."""
        if self.modality not in (other.modality, "both"):
            return False
        if other.modality != "text" and (other.norm != self.norm or _exceeds(other.epsilon, self.epsilon)):
            return False
        if other.modality == "image":
            return True
        return (
            other.word_edits == self.word_edits
            and self.synonyms in (None, other.synonyms)
            and not _exceeds(other.max_change_share, self.max_change_share)
            and not _exceeds(other.max_changed_words, self.max_changed_words)
            and not _exceeds(other.max_candidates, self.max_candidates)
            and not _exceeds(self.min_cosine, other.min_cosine, unlimited=-1.0)
        )

    def part(self, modality: Literal["image", "text"]) -> "ThreatModel":
        """The attacker who may change only one of the two modalities of a joint threat model."""
        image, text = ("norm", "epsilon"), ("max_change_share", "max_changed_words", "word_edits")
        text += ("max_candidates", "min_cosine", "synonyms")
        dropped = text if modality == "image" else image
        kept = {name: value for name, value in self.to_dict().items() if name not in dropped}
        return ThreatModel.from_dict({**kept, "modality": modality})

    def to_dict(self) -> dict[str, Any]:
        """Plain fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ThreatModel":
        """Rebuild from `to_dict`.

        Raises:
            ValueError: If a key is not a field of a threat model, or a value is not allowed.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"Unknown threat model fields {unknown}; known fields are {sorted(known)}.")
        return cls(**values)

    @classmethod
    def load(cls, name: str | Path) -> "ThreatModel":
        """A preset, or what a YAML file describes field by field.

        On pixels: `thesis` (linf, 0.64/255, the published tables), `linf-N` (N/255), `l2-E` (norm E of pixels
        in [0, 1]). On words: `words-N` (N synonyms), `words-Npct` (N per cent of the words), `typos-N`,
        `invisible-N`. On both: `joint-<pixels>-<words>`, such as `joint-linf-4-words-20pct`.

        Raises:
            ValueError: If there is neither such a preset nor such a file, or the file is no threat model.
        """
        if Path(name).suffix in (".yaml", ".yml"):
            return cls._from_yaml(Path(name))
        fields_of_name = _preset_fields(str(name))
        if fields_of_name is None:
            near = difflib.get_close_matches(str(name), PRESETS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"There is no threat model {str(name)!r}; {hint}Presets are {', '.join(PRESETS)}, any number "
                "in their places; or give a YAML file with the fields of ThreatModel."
            )
        return cls(**fields_of_name)

    @classmethod
    def _from_yaml(cls, path: Path) -> "ThreatModel":
        if not path.is_file():
            raise ValueError(f"There is no file {path}; presets are {', '.join(PRESETS)}.")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold fields of a threat model, such as 'modality: image'.")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that are equal exactly when all fields are."""
        canonical = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def count_words(text: str) -> int:
    """Number of words: runs of letters and digits. `T-shirt` has two, `red,blue` has two."""
    return len(re.findall(r"[^\W_]+", text))


def check_epsilon(epsilon: float, norm: Norm = "linf") -> None:
    """Refuse a radius that no picture in [0, 1] can have.

    Raises:
        ValueError: If it is negative, not a number, or above one in the linf norm.
    """
    if norm == "linf" and not 0.0 <= epsilon <= 1.0:
        raise ValueError(
            f"epsilon is {epsilon}; expected a radius in [0, 1] pixel units. "
            "Divide grey levels by 255, and values in normalised space by 1 / image_std."
        )
    if norm == "l2" and not 0.0 <= epsilon < float("inf"):
        raise ValueError(f"epsilon is {epsilon}; expected an L2 norm >= 0 of pixels in [0, 1].")


def _exceeds(mine: float | None, limit: float | None, unlimited: float = float("inf")) -> bool:
    """Whether a budget is above a limit; None is `unlimited` on either side."""
    return (unlimited if mine is None else mine) > (unlimited if limit is None else limit)


def _check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(repr, allowed))}.")


_NUMBER = r"(\d+(?:\.\d+)?)"


def _preset_fields(name: str) -> dict[str, Any] | None:
    """Fields of a preset, None if the name is none."""
    if name == "thesis":  # epsilon 0.005 in the normalised space [-1, 1]
        return {"modality": "image", "norm": "linf", "epsilon": 0.0025}
    if match := re.fullmatch(rf"(linf|l2)-{_NUMBER}", name):
        radius = float(match[2]) / 255 if match[1] == "linf" else float(match[2])
        return {"modality": "image", "norm": match[1], "epsilon": radius}
    if match := re.fullmatch(r"words-(\d+)pct", name):
        return {"modality": "text", "word_edits": "synonyms", "max_change_share": int(match[1]) / 100}
    if match := re.fullmatch(r"(words|typos|invisible)-(\d+)", name):
        edits = "synonyms" if match[1] == "words" else match[1]
        return {"modality": "text", "word_edits": edits, "max_changed_words": int(match[2])}
    if match := re.fullmatch(r"joint-(thesis|linf-[\d.]+|l2-[\d.]+)-(.+)", name):
        image, text = _preset_fields(match[1]), _preset_fields(match[2])
        if image and text and text["modality"] == "text":
            return {**image, **text, "modality": "both"}
    return None
