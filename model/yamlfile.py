"""YAML written by people: `safe_load`, bounded, and without the two things that bite: repeated keys and aliases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from model.errors import RedcaneError
from model.files import read_bounded

SIZE_LIMIT = 2**20  # bytes


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, stricter."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few of them nested expand to gigabytes
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value[:80]!r} stands there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file of at most 1 MiB.

    Raises RedcaneError when the file is missing, too large, not UTF-8, not YAML, has a repeated key or an alias, or
    holds something else than a mapping with text keys.
    """
    content = read_bounded(path, SIZE_LIMIT)
    try:
        data = yaml.load(content.decode(), Loader=_Loader)  # a subclass of SafeLoader
    except UnicodeDecodeError:
        raise RedcaneError(f"{path}: not a text file (UTF-8)") from None
    except yaml.MarkedYAMLError as error:
        where = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RedcaneError(f"{path}:{where} {error.problem}") from None
    # the others: a timestamp such as 2024-13-45, and tags with nonsense behind them such as `!!bool maybe`
    except (yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RedcaneError(f"{path}: not YAML ({reason})") from None
    except RecursionError:
        raise RedcaneError(f"{path}: nested too deeply") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise RedcaneError(f"{path}: should be a mapping, lines of `key: value`")
    return data
