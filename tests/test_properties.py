"""Properties of every loss for calls that hypothesis draws; `HYPOTHESIS_PROFILE=long` draws more of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loss_properties import PROPERTIES


@pytest.mark.parametrize("name", PROPERTIES)
@given(data=st.data())
def test_property(name: str, data: Any) -> None:
    call, seed = data.draw(PROPERTIES[name].drawn_call())
    PROPERTIES[name].holds(call, seed)
