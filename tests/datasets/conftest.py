import warnings

import pytest
import reid_trees


@pytest.fixture(autouse=True)
def quiet_counts():
    """Tiny trees never have the published counts; tests that are about this warning ask for it with pytest.warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*published with.*")
        yield


@pytest.fixture
def market(tmp_path):
    return reid_trees.write_market(tmp_path / "Market-1501-v15.09.15")
