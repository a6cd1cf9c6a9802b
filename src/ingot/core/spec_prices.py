"""The prices that a spec gives: read and checked. What they mean: ``ingot.core.prices``."""

from __future__ import annotations

import math
from typing import Any

from ingot.core.complaints import describe, is_number, unknown_fields
from ingot.core.problems import Problems

NUMBERS = ("machine_hour", "gpu_hour")
FIELDS = (*NUMBERS, "currency")
#: The most characters of the name of a currency.
LONGEST = 12


def read_prices(value: object, problems: Problems) -> dict[str, Any]:
    """The prices of a spec as plain JSON; what is wrong with them becomes problems."""
    path = ("prices",)
    if not isinstance(value, dict):
        problems.add(path, "E-SPEC-TYPE", f"must be a mapping of prices, not {describe(value)}")
        return {}
    unknown_fields(value, path, FIELDS, problems)
    for name in NUMBERS:
        price = value.get(name)
        if name not in value:
            continue
        if not is_number(price):
            problems.add((*path, name), "E-SPEC-TYPE", f"must be a number, not {describe(price)}")
        elif not math.isfinite(price) or price < 0:
            problems.add((*path, name), "E-SPEC-VALUE", f"must be at least 0, not {price}")
    if not any(name in value for name in NUMBERS):
        problems.add(path, "E-SPEC-MISSING", f"needs a price: {' or '.join(NUMBERS)}")
    currency = value.get("currency")
    if "currency" not in value:
        problems.add(path, "E-SPEC-MISSING", "a required field is missing: currency")
    elif not isinstance(currency, str) or not currency.strip() or len(currency) > LONGEST:
        what = f"must be the name of a currency, of at most {LONGEST} characters, not {describe(currency)}"
        problems.add((*path, "currency"), "E-SPEC-TYPE", what)
    return {name: value[name] for name in FIELDS if name in value}
