"""midcourse methods."""

import json


def test_methods_are_listed(midcourse):
    code, out, _ = midcourse("methods")
    assert code == 0
    assert "cd-blockwise" in out
    code, out, _ = midcourse("methods", "--json")
    assert json.loads(out)["pargs"] == {
        "guide": "add_reward", "greedy": False, "reward_weight": 2.0, "top_k": 10, "temperature": 1.0, "top_p": 1.0,
        "ranked_by": "lm", "soft_value": False, "source": json.loads(out)["pargs"]["source"],
    }  # fmt: skip
