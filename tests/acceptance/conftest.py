"""A node with the real commands, and an embedded PACS that it delivers to."""

import pytest

from dicom_node.demo.pacs import EmbeddedPacs
from tests.node import Node
from tests.peers import LOOPBACK


@pytest.fixture
def pacs(tmp_path):
    """An embedded PACS; `node` tells it where to report."""
    with EmbeddedPacs(tmp_path / "pacs") as one:
        yield one


@pytest.fixture
def node(tmp_path, pacs):
    with Node(tmp_path / "node", pacs.port) as one:
        pacs.report_to = ("DESPECKLE", LOOPBACK, one.port)
        yield one
