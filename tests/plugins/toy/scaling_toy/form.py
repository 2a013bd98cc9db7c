"""A form of law: the loss falls as a power of the tokens, above no floor."""

from __future__ import annotations

from dataclasses import replace

from scaling.laws.forms import FORMS

TOY = replace(FORMS["kaplan_d"], name="toy", equation="L = (T_c / D)^alpha_T", source="a toy")
