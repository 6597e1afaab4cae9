"""The type checker of the tests: beartype, for which an int will do where a float is asked for, as everywhere else."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
