"""Oracles of the rules by which libraries match names with patterns, and generators of names and patterns."""

from __future__ import annotations

import fnmatch
import random
import re
from collections.abc import Sequence

RUN = "any run"  # an element of a parsed pattern: any run of characters, dots included
CHILDREN = "children"  # nothing, or a dot and any run
DEFAULT = "component or wildcards"  # the rule of `reference`


def matches(pattern: str, key: str | None, rule: str = DEFAULT) -> bool | None:
    """Whether a pattern matches a name by a rule; None where libraries of that rule differ."""
    if key is None:
        return False
    if rule == "suffix":
        return f".{key}".endswith(f".{pattern}")
    if rule == "component":
        return pattern == key.split(".")[-1]
    if rule in ("regex", "shell"):
        return _fully(pattern if rule == "regex" else fnmatch.translate(pattern), key)
    if rule == "wildcards":
        strict = _by_wildcards(pattern, key)
        return strict if strict == _whole(_loosely(pattern), key) else None
    return pattern == key.split(".")[-1] or _by_wildcards(pattern, key)


def chosen(patterns: Sequence[str], keys: Sequence[str], rule: str = DEFAULT) -> list[str]:
    """The keys that at least one pattern matches, sorted."""
    return sorted(key for key in keys if any(matches(pattern, key, rule) for pattern in patterns))


def open_keys(patterns: Sequence[str], keys: Sequence[str], rule: str) -> set[str]:
    """The keys for which it is open whether a pattern matches."""
    found = {key: [matches(pattern, key, rule) for pattern in patterns] for key in keys}
    return {key for key, results in found.items() if None in results and True not in results}


def _fully(pattern: str, key: str) -> bool:
    try:
        return re.fullmatch(pattern, key, re.DOTALL) is not None
    except re.error:
        return False


def _by_wildcards(pattern: str, key: str) -> bool:
    if pattern.startswith(".*"):
        return _whole(_parsed(pattern, ".*"), key)
    if _whole(_parsed(pattern, "*"), key):
        return True
    return pattern.endswith(".*") and _whole(_parsed(pattern[:-2], "*"), key)


def _parsed(pattern: str, run: str) -> list[str]:
    parsed: list[str] = []
    for i, literal in enumerate(pattern.split(run)):
        parsed += ([RUN] if i else []) + list(literal)
    return parsed


def _loosely(pattern: str) -> list[str]:
    """A pattern in which each `.*` after a whole part of a name also matches nothing, and any other is any run.

    Source: NeMo Automodel 0.7.0 `_compile_wildcard_pattern`.
    """
    parsed: list[str] = []
    parts = re.split(r"(\.?\*)", pattern)
    for i, part in enumerate(parts):
        before = parts[i - 1] if i else ""
        whole = before.startswith(".") or (i == 1 and before) or re.search(r"\.\d+$", before)
        parsed += ([CHILDREN] if part == ".*" and whole else [RUN]) if i % 2 else list(part)
    return parsed


def _whole(parsed: Sequence[str], key: str) -> bool:
    """Whether the parsed pattern spans the whole key: tracks the positions that each element can reach."""
    reached = {0}
    for element in parsed:
        if element is RUN:
            reached = set(range(min(reached), len(key) + 1))
        elif element is CHILDREN:
            dots = [i for i in reached if i < len(key) and key[i] == "."]
            reached |= set(range(min(dots) + 1, len(key) + 1)) if dots else set()
        else:
            reached = {i + 1 for i in reached if i < len(key) and key[i] == element}
        if not reached:
            return False
    return len(key) in reached


PARTS = (
    "model",
    "layers",
    "0",
    "1",
    "11",
    "self_attn",
    "q_proj",
    "bq_proj",
    "q",
    "mlp",
    "fc1",
    "b",
    "lm_head",
    "Q_proj",
)


def drawn_key(seed: int) -> str:
    """A dotted module name of two to five parts."""
    chance = random.Random(f"key {seed}")
    return ".".join(chance.choice(PARTS) for _ in range(chance.randint(2, 5)))


def near_keys(key: str, seed: int) -> list[str]:
    """The key and all similar ones: with a longer part, one part more or less, or another character for a dot."""
    parts = key.split(".")
    near = [
        key,
        f"model.{key}",
        f"{key}.b",
        *(".".join([*parts[:i], f"1{part}", *parts[i + 1 :]]) for i, part in enumerate(parts)),
        *(".".join([*parts[:i], f"{part}1", *parts[i + 1 :]]) for i, part in enumerate(parts)),
        *(".".join([*parts[:i], "b", *parts[i:]]) for i in range(len(parts))),
        *(".".join([*parts[:i], *parts[i + 1 :]]) for i in range(len(parts))),
        key.replace(".", "x", 1),
        key.replace(".", "x"),
        key.swapcase(),
        *(".".join(parts[j:]) for j in range(1, len(parts))),
        *(".".join(parts[:j]) for j in range(1, len(parts))),
        *(drawn_key(seed * 8 + j) for j in range(1, 5)),
    ]
    return list(dict.fromkeys(near))


def drawn_pattern(key: str, kind: str, seed: int) -> str:
    """A pattern made from a key.

    Args:
        kind: `exact` (the key), `last` (its last part), `run` (a piece replaced by `*`), `part` (whole parts
            replaced by `*`), `tail` (the first parts and a final `.*`) or `legacy` (a piece of a part within `.*`).
    """
    chance = random.Random(f"pattern {seed} {key} {kind}")
    parts = key.split(".")
    if kind == "exact":
        return key
    if kind == "last":
        return parts[-1]
    if kind == "part" and len(parts) > 1:
        starred = set(chance.sample(range(len(parts)), chance.randint(1, len(parts) - 1)))
        # keep the last part: a final ".*" falls under another rule
        kept = ["*" if i in starred and i != len(parts) - 1 else part for i, part in enumerate(parts)]
        return ".".join(kept)
    if kind == "tail":
        head = ".".join(parts[: chance.randint(1, len(parts))])
        return f"{chance.choice(('', '*.', '*'))}{head}.*"
    if kind == "legacy":
        return f".*{_piece(parts[chance.randrange(len(parts))], chance)}{chance.choice(('.*', ''))}"
    start, stop = sorted(chance.sample(range(len(key) + 1), 2))
    star = key[:start] + "*" + key[stop:]
    return star if not star.endswith(".*") and not star.startswith(".*") else f"*{parts[-1]}"


def pattern_in(rule: str, key: str, kind: str, seed: int) -> str:
    """A pattern of a rule, made from a key; `drawn_pattern` says what the kinds are in a rule with wildcards."""
    if rule in (DEFAULT, "wildcards"):
        return drawn_pattern(key, kind, seed)
    parts = key.split(".")
    if rule == "shell":
        drawn = drawn_pattern(key, kind, seed)
        return drawn.replace(".*", "*") if kind == "legacy" else drawn
    if rule == "component" or (rule == "suffix" and kind == "last"):
        return parts[-1]
    if rule == "suffix":
        first = 0 if kind == "exact" else random.Random(f"suffix {seed} {key} {kind}").randrange(len(parts))
        return ".".join(parts[first:])
    if kind == "last":
        return rf"(.*\.)?{re.escape(parts[-1])}"
    stars = drawn_pattern(key, kind, seed).removeprefix("." if kind == "legacy" else "").replace(".*", "*")
    return ".*".join(map(re.escape, stars.split("*")))


def _piece(part: str, chance: random.Random) -> str:
    start = chance.randrange(len(part))
    return part[start : chance.randint(start + 1, len(part))]


def literal_patterns(key: str, seed: int) -> list[str]:
    """Patterns that would match the key as regular expressions or shell globs, but are literal here."""
    i = random.Random(f"literal {seed} {key}").randrange(1, len(key))
    before, at, after = key[:i], key[i], key[i + 1 :]
    replaced = [f"{before}{special}{after}" for special in (".", "?", "[!~]", "[^~]", "\\w", f"({at})", f"[{at}]")]
    inserted = [f"{before}{special}{at}{after}" for special in ("+", "?", "{1}", "()", "(", "[", "\\")]
    return [*replaced, *inserted, f"^{key}", f"{key}$", f"{key}|", key.swapcase(), f" {key}", f"{key} "]
