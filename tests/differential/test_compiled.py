"""The compiled graph against the reference: every packet, counter and flow, through whatever Hypothesis thinks of."""

from differential.machine import machine_for
from differential.plane import CompiledPlane

TestCompiled = machine_for(CompiledPlane).TestCase
