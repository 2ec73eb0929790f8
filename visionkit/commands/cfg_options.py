"""``--cfg-options``, which several commands share."""

import argparse
from collections.abc import Sequence

from mmengine.config import DictAction


class CfgOptions(DictAction):
    """mmengine's ``KEY=VALUE ...``, with one line for a value that it cannot read."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        """Puts the pairs into the namespace."""
        for each in values:
            if "=" not in each:
                parser.error(f"{option_string} {each}: expected KEY=VALUE")
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, RecursionError, ValueError):  # brackets that do not match, or a dictionary
            parser.error(
                f"{option_string} {' '.join(values)}: cannot be read; a value is a number, a word or a list as [1,2]; "
                "a dictionary's entries are given one by one, as in stages.target.model.ecab=False"
            )


def add_cfg_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Adds the option to a command."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=CfgOptions,
        metavar="KEY=VALUE",
        help=f"change settings of the config, as in {example}",
    )
