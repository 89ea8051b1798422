"""Request bodies: read within bounds, and the order in one checked explicitly, field by field."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from services.gateway.problems import FieldError, Problem
from services.runtime.validation import LONGEST_ID
from services.shop.checks import LONGEST_SKU, is_sku
from services.shop.limits import MOST_ITEMS, MOST_PIECES

_CLOSE = {"Connection": "close"}


@dataclass(frozen=True, slots=True)
class Item:
    """So many pieces of one product."""

    sku: str
    quantity: int


@dataclass(frozen=True, slots=True)
class OrderForm:
    """An order as the buyer wrote it, checked. ``idempotency_key`` is None when there was none."""

    items: tuple[Item, ...]
    idempotency_key: str | None

    def fields(self) -> dict[str, str]:
        """Which field named which sku."""
        return {item.sku: f"items[{index}].sku" for index, item in enumerate(self.items)}


async def read_body(request: Request, *, limit: int, timeout_s: float) -> bytes:
    """The whole body, at most ``limit`` bytes, sent within ``timeout_s`` seconds.

    uvicorn bounds neither. Raises ``Problem`` 413 or 408, after which the connection is closed: what
    is still on its way cannot be told from a next request.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {timeout_s:g} s", headers=_CLOSE) from None
    except ClientDisconnect:
        raise Problem(400, "the body ended early", headers=_CLOSE) from None
    return bytes(body)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the body is larger than {limit} bytes", headers=_CLOSE)


_CARELESS = ("", "application/x-www-form-urlencoded", "text/plain")
_BROWSERS_SAY = ("origin", "referer", "sec-fetch-site")


def media_type(request: Request) -> str:
    """The media type of the body, lower-case and without parameters; empty when none is given."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json(request: Request) -> None:
    """Raise ``Problem`` 415 unless the body says that it is JSON.

    A form can be sent to this port by any web page that the user has open, JSON cannot. A browser
    says where a form comes from; who does not is a command line, and may leave the type out
    (``curl -d`` calls everything a form).
    """
    kind = media_type(request)
    if kind in _CARELESS and not any(name in request.headers for name in _BROWSERS_SAY):
        return
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem(
            415,
            f"the body is {kind or 'of no stated type'}; expected Content-Type: application/json",
            headers={"Accept-Post": "application/json"},
        )


def parse_order(body: bytes) -> OrderForm:
    """Check an order: ``{"items": [{"sku", "quantity"}], "idempotency_key"?}``.

    Raises ``Problem`` 400 naming every field that is wrong, or 404 when a sku is a text that no
    product can have.
    """
    data = _load(body)
    if not isinstance(data, dict):
        raise Problem(400, f"the body is {_kind(data)}; expected an object with items")
    errors = [
        FieldError(name, "is not known; expected items and, if you like, idempotency_key")
        for name in data
        if name not in ("items", "idempotency_key")
    ]
    items = _items(data, errors)
    key = data.get("idempotency_key")
    if key is not None:
        _check_text("idempotency_key", key, LONGEST_ID, errors)
    if errors:
        raise Problem(400, f"{errors[0].field}: {errors[0].detail}", errors=errors)
    impossible = [
        FieldError(f"items[{index}].sku", f"no product has the sku {item.sku!r}")
        for index, item in enumerate(items)
        if not is_sku(item.sku)
    ]
    if impossible:
        raise Problem(404, f"{impossible[0].field}: {impossible[0].detail}", errors=impossible)
    return OrderForm(tuple(items), key)


def _items(data: dict[str, object], errors: list[FieldError]) -> list[Item]:
    if "items" not in data:
        errors.append(FieldError("items", "is missing; expected a list of {sku, quantity}"))
        return []
    raw = data["items"]
    if not isinstance(raw, list):
        errors.append(FieldError("items", f"is {_kind(raw)}; expected a list of {{sku, quantity}}"))
        return []
    if not 1 <= len(raw) <= MOST_ITEMS:
        errors.append(FieldError("items", f"has {len(raw)} items; expected 1 to {MOST_ITEMS}"))
        return []
    items: list[Item] = []
    first_at: dict[str, int] = {}
    for index, entry in enumerate(raw):
        item = _item(f"items[{index}]", entry, errors)
        if item is None:
            continue
        if item.sku in first_at:
            errors.append(
                FieldError(f"items[{index}].sku", f"is in items[{first_at[item.sku]}] already; expected each sku once")
            )
            continue
        first_at[item.sku] = index
        items.append(item)
    return items


def _item(path: str, entry: object, errors: list[FieldError]) -> Item | None:
    if not isinstance(entry, dict):
        errors.append(FieldError(path, f"is {_kind(entry)}; expected an object with sku and quantity"))
        return None
    before = len(errors)
    errors.extend(
        FieldError(f"{path}.{name}", "is not known; expected sku and quantity")
        for name in entry
        if name not in ("sku", "quantity")
    )
    sku, quantity = entry.get("sku"), entry.get("quantity")
    if "sku" not in entry:
        errors.append(FieldError(f"{path}.sku", "is missing; expected the sku of a product"))
    else:
        _check_text(f"{path}.sku", sku, LONGEST_SKU, errors)
    if "quantity" not in entry:
        errors.append(FieldError(f"{path}.quantity", f"is missing; expected a whole number from 1 to {MOST_PIECES}"))
    elif isinstance(quantity, bool) or not isinstance(quantity, int):
        errors.append(
            FieldError(f"{path}.quantity", f"is {_kind(quantity)}; expected a whole number from 1 to {MOST_PIECES}")
        )
    elif not 1 <= quantity <= MOST_PIECES:
        shown = str(quantity) if abs(quantity) < 10**18 else "too large"
        errors.append(FieldError(f"{path}.quantity", f"is {shown}; expected 1 to {MOST_PIECES}"))
    if len(errors) > before or not isinstance(sku, str) or not isinstance(quantity, int):
        return None
    return Item(sku, quantity)


def _check_text(path: str, value: object, longest: int, errors: list[FieldError]) -> None:
    if not isinstance(value, str):
        errors.append(FieldError(path, f"is {_kind(value)}; expected a string of 1 to {longest} characters"))
    elif not 1 <= len(value) <= longest:
        errors.append(FieldError(path, f"has {len(value)} characters; expected 1 to {longest}"))
    elif not value.isprintable():
        # Also catches half of a surrogate pair, which JSON can write and UTF-8 cannot.
        errors.append(FieldError(path, "has characters that cannot be printed; expected plain text"))


def _load(body: bytes) -> object:
    if not body:
        raise Problem(400, "the body is empty; expected a JSON object with items")
    try:
        text = body.decode("utf-8")
        data: object = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once_each)
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}") from None
    except json.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise Problem(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise Problem(400, f"the body is not valid: {error}") from None
    return data


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the field {name[:64]!r} occurs twice")
        found[name] = value
    return found


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int():
            return "a number"
        case float():
            return "a number with a fraction"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"
