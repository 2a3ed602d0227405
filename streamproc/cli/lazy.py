"""A command whose module is imported only when it is used: benchmarks import a lot."""

from importlib import import_module

import click


class LazyGroup(click.Group):
    """Stands for the group at `target` ("module:name") until it is used."""

    def __init__(self, name: str, target: str, short_help: str) -> None:
        super().__init__(name, help=short_help)
        self._target = target

    def _group(self) -> click.Group:
        module, _, attribute = self._target.partition(":")
        group = getattr(import_module(module), attribute)
        assert isinstance(group, click.Group)
        return group

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the group's commands."""
        return self._group().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of the group's commands."""
        return self._group().get_command(ctx, cmd_name)
