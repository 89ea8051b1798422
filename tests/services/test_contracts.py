"""The contracts themselves: what every one of them keeps to, and that the stubs follow them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor

from mesh.catalog.v1 import catalog_pb2
from mesh.common.v1 import Money
from mesh.inventory.v1 import inventory_pb2
from mesh.orders.v1 import orders_pb2
from mesh.payments.v1 import payments_pb2
from mesh.runtime.v1 import runtime_pb2
from services.shop import money
from tools import stubs

FILES: list[FileDescriptor] = [
    module.DESCRIPTOR for module in (catalog_pb2, inventory_pb2, orders_pb2, payments_pb2, runtime_pb2)
]
METHODS: list[MethodDescriptor] = [
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_method_says_whether_it_may_be_repeated(method: MethodDescriptor) -> None:
    """Each method declares its idempotency_level: what a client may retry depends on it."""
    options = descriptor_pb2.MethodOptions()
    method.GetOptions()
    options.CopyFrom(method.GetOptions())
    assert options.HasField("idempotency_level")
    assert options.idempotency_level != descriptor_pb2.MethodOptions.IDEMPOTENCY_UNKNOWN


def test_all_four_kinds_are_in_use() -> None:
    """The contracts use unary calls and streams in both directions, alone and together."""
    assert {(method.client_streaming, method.server_streaming) for method in METHODS} == {
        (False, False), (False, True), (True, False), (True, True),
    }  # fmt: skip


def test_stale_stubs_are_found(tmp_path: Path) -> None:
    """Generating twice makes the same bytes; a changed, missing or left-over file is listed."""
    assert stubs.generate(tmp_path)
    made = tmp_path / stubs.PACKAGE
    assert stubs.differences(stubs.STUBS / stubs.PACKAGE, made) == []
    (made / "left_over.py").write_text("")
    (made / "py.typed").unlink()
    catalog = made / "catalog" / "v1" / "__init__.py"
    catalog.write_text(catalog.read_text() + "# changed\n")
    assert stubs.differences(made, stubs.STUBS / stubs.PACKAGE) == [
        "missing: mesh/py.typed",
        "no longer generated: mesh/left_over.py",
        "stale: mesh/catalog/v1/__init__.py",
    ]


CALL_SITE = """
from collections.abc import AsyncIterator

import grpc

from mesh.catalog.v1 import CatalogStub, GetProductRequest, SearchProductsRequest
from mesh.inventory.v1 import ImportStockRequest, InventoryStub
from mesh.orders.v1 import OrdersStub, PriceBasketRequest


async def asynchronous(channel: grpc.aio.Channel, lines: AsyncIterator[ImportStockRequest]) -> str:
    product = (await CatalogStub(channel).GetProduct(GetProductRequest(sku="x"), timeout=0.5)).product
    async for found in CatalogStub(channel).SearchProducts(SearchProductsRequest(query="x")):
        product = found.product
    units: int = (await InventoryStub(channel).ImportStock(lines)).units
    call = OrdersStub(channel).PriceBasket()
    await call.write(PriceBasketRequest(sku="x", quantity=units))
    return product.sku


def synchronous(channel: grpc.Channel) -> str:
    for found in CatalogStub(channel).SearchProducts(SearchProductsRequest(query="x")):
        print(found.product.price.units)
    return CatalogStub(channel).GetProduct(GetProductRequest(sku="x"), timeout=0.5).product.sku
"""


def test_call_sites_are_typed(tmp_path: Path) -> None:
    """Code that calls the stubs, with asyncio or without, passes mypy --strict; a misspelt field does not."""
    good = tmp_path / "good.py"
    good.write_text(CALL_SITE)
    bad = tmp_path / "bad.py"
    bad.write_text(CALL_SITE.replace("found.product.price.units", "found.product.prize"))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    environment = {"MYPYPATH": str(ROOT / "stubs"), "PATH": ""}
    result = subprocess.run(
        [*command, str(good), str(bad)], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    errors = [line for line in result.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, result.stdout + result.stderr
    assert '"Product" has no attribute "prize"' in errors[0]


@pytest.mark.skipif(shutil.which("buf", path=str(Path(sys.executable).parent)) is None, reason="buf is not installed")
def test_a_breaking_change_is_refused(tmp_path: Path) -> None:
    """Compared with the contracts of the last release they pass as they are; with a renamed field they do not."""
    buf = str(Path(sys.executable).parent / "buf")
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    command = [buf, "breaking", "--against", "protos/released.binpb"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    catalog = tmp_path / "protos" / "mesh" / "catalog" / "v1" / "catalog.proto"
    catalog.write_text(catalog.read_text().replace("string category = 4;", "string section = 4;"))
    result = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert result.returncode != 0
    assert "category" in result.stdout


@pytest.mark.parametrize("nanos", [0, 1, -1, 999_999_999, -1_500_000_000, 10**18 + 1])
def test_money_is_exact(nanos: int) -> None:
    """Units and nanos have one sign, and the way there and back loses nothing."""
    amount = money.from_nanos("EUR", nanos)
    assert money.to_nanos(amount) == nanos
    assert amount.units * amount.nanos >= 0
    assert money.flaw(amount) == ""


def test_flaws_of_money() -> None:
    """What is no amount is told in words."""
    assert "ISO 4217" in money.flaw(Money(currency_code="eur"))
    assert "nanos" in money.flaw(Money(currency_code="EUR", nanos=1_000_000_000))
    assert "signs" in money.flaw(Money(currency_code="EUR", units=1, nanos=-1))
