"""The source `cli`: what commands and API requests, taken together, ask for.

It is a value: a request makes a new one out of the present one, and only when the data plane has taken it over does
it become the present one.  Lines mean exactly what they mean in a script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from kuproxy.daemon.schema import Conf, Interface, State, conf_with, settings_over, spec_of, vip_of
from kuproxy.errors import ConfigError, Problem
from kuproxy.model.config import Config, Settings
from kuproxy.vppcli.actions import Action, SetConf
from kuproxy.vppcli.apply import Desired
from kuproxy.vppcli.grammar import scan_script

__all__ = ["SOURCE", "Commands"]

SOURCE = "cli"


@dataclass(frozen=True, slots=True)
class Commands:
    """VIPs and marks as commands built them, and the settings that they have said something about."""

    desired: Desired = field(default_factory=Desired)
    conf: Conf = field(default_factory=Conf)

    def _trial(self, base: Settings) -> Desired:
        """A copy to apply commands to, without what earlier ones asked for once (a trace, a flush, a `show`)."""
        trial = self.desired.copy()
        trial.settings = settings_over(base, self.conf)
        trial.shows, trial.flushed, trial.trace, trial.flush_flows = [], [], 0, False
        return trial

    def run(self, text: str, base: Settings) -> Commands:
        """After a script.  Raises ConfigError with every problem of every line."""
        trial = self._trial(base)
        trial.run(text)
        return Commands(trial, self._conf_after(scan_script(text).actions))

    def apply(self, base: Settings, *actions: Action) -> Commands:
        """After some actions.  Raises ConfigError with every problem."""
        trial = self._trial(base)
        trial.apply(*actions)
        return Commands(trial, self._conf_after(actions))

    def edit(self, base: Settings, change: Callable[[Desired], None]) -> Commands:
        """After a change that the language has no words for.  `change` may raise ConfigError."""
        trial = self._trial(base)
        change(trial)
        return Commands(trial, self.conf)

    def with_conf(self, base: Settings, conf: Conf) -> Commands:
        """With other settings.  Raises ConfigError."""
        trial = self._trial(base)
        trial.settings = settings_over(base, conf)
        return Commands(trial, conf)

    def rebased(self, base: Settings) -> Commands:
        """The same over other settings of the files."""
        return Commands(self._trial(base), self.conf)

    def _conf_after(self, actions: Iterable[Action]) -> Conf:
        conf = self.conf
        for action in actions:
            if isinstance(action, SetConf):
                conf = conf_with(conf, action)
        return conf

    def config(self) -> Config:
        return self.desired.config((SOURCE,))

    def state(self) -> State:
        """What survives."""
        return State(
            conf=self.conf,
            vips=[spec_of(vip) for vip in self.desired.vips],
            interfaces=[Interface.of(mark) for mark in self.desired.interfaces],
        )

    @classmethod
    def of(cls, state: State, base: Settings) -> Commands:
        """From what survived, or what a client wants loaded.  Raises ConfigError with every problem."""
        problems: list[Problem] = []
        made = cls().with_conf(base, state.conf)
        trial = made.desired
        seen = set()
        for number, spec in enumerate(state.vips):
            try:
                vip = vip_of(spec)
                if vip.key in seen:
                    raise ConfigError(Problem(f"VIP {vip.key} is given twice"))
                seen.add(vip.key)
                trial.put(vip)
            except ConfigError as error:
                problems += [
                    replace(each, field=".".join(filter(None, (f"vips[{number}]", each.field))))
                    for each in error.problems
                ]
        if problems:
            raise ConfigError(problems)
        trial.set_interfaces(mark.mark() for mark in state.interfaces)
        return made
