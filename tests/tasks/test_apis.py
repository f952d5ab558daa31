"""The mock APIs do what their documents say, and survive whatever a model calls them with."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.data.calls import Call
from minnow.tasks.apis import APIS, Session

FILES = {
    "GorillaFileSystem": {
        "root": {
            "home": {
                "type": "directory",
                "contents": {
                    "a.txt": {"type": "file", "content": "one two\nthree"},
                    "b.txt": {"type": "file", "content": "one 2\nthree\nfour"},
                    ".hidden": {"type": "file", "content": ""},
                    "docs": {"type": "directory", "contents": {"a.txt": {"type": "file", "content": "é"}}},
                },
            }
        }
    }
}
NUMBERED = {"TwitterAPI": {"tweets": {"0": {"id": 0, "username": "ann", "content": "Hi", "tags": ["#x"], "mentions": []}},
                           "tweet_counter": 1}}  # fmt: skip
TICKET = {"TicketAPI": {"ticket_queue": [{"id": 7, "title": "t", "status": "Open", "created_by": "eve"}]}}

# API, its state, calls in turn (name, arguments) with what comes back; a text is what an error says
SCRIPTS: dict[str, tuple[str, dict[str, Any], list[tuple[str, dict[str, Any], Any]]]] = {
    "looking around": ("GorillaFileSystem", FILES, [
        ("pwd", {}, {"current_working_directory": "/home"}),
        ("ls", {}, {"current_directory_content": ["a.txt", "b.txt", "docs"]}),
        ("ls", {"a": True}, {"current_directory_content": ["a.txt", "b.txt", ".hidden", "docs"]}),
        ("cd", {"folder": "docs/"}, {"current_working_directory": "docs"}),
        ("pwd", {}, {"current_working_directory": "/home/docs"}),
        ("du", {}, {"disk_usage": "2 bytes"}),
        ("cd", {"folder": ".."}, {}),
        ("cd", {"folder": ".."}, "root already"),
        ("cd", {"folder": "docs/x"}, "no such directory"),
        ("cd", {"folder": "a.txt"}, "no such directory"),
        ("find", {"name": "a"}, {"matches": ["./a.txt", "./docs/a.txt"]}),
        ("find", {"path": "docs"}, {"matches": ["docs/a.txt"]}),
        ("find", {"path": "none"}, "no such directory"),
        ("du", {"human_readable": True}, {"disk_usage": "31.00 B"}),
    ]),
    "reading": ("GorillaFileSystem", FILES, [
        ("cat", {"file_name": "a.txt"}, {"file_content": "one two\nthree"}),
        ("cat", {"file_name": "docs"}, "is a directory"),
        ("cat", {"file_name": "c"}, "no such file"),
        ("wc", {"file_name": "a.txt"}, {"count": 2, "type": "lines"}),
        ("wc", {"file_name": "a.txt", "mode": "w"}, {"count": 3, "type": "words"}),
        ("wc", {"file_name": "a.txt", "mode": "c"}, {"count": 13, "type": "characters"}),
        ("wc", {"file_name": "a.txt", "mode": "x"}, "invalid mode"),
        ("sort", {"file_name": "b.txt"}, {"sorted_content": "four\none 2\nthree"}),
        ("grep", {"file_name": "b.txt", "pattern": "o"}, {"matching_lines": ["one 2", "four"]}),
        ("tail", {"file_name": "b.txt", "lines": 2}, {"last_lines": "three\nfour"}),
        ("tail", {"file_name": "b.txt"}, {"last_lines": "one 2\nthree\nfour"}),
        ("diff", {"file_name1": "a.txt", "file_name2": "b.txt"}, {"diff_lines": "- one two\n+ one 2"}),
        ("echo", {"content": "hi"}, {"terminal_output": "hi"}),
    ]),
    "changing": ("GorillaFileSystem", FILES, [
        ("touch", {"file_name": "a.txt"}, "exists"),
        ("touch", {"file_name": "x/y"}, "invalid character"),
        ("mkdir", {"dir_name": "new"}, None),
        ("touch", {"file_name": "c"}, None),
        ("echo", {"content": "text", "file_name": "c"}, None),
        ("echo", {"content": "text", "file_name": "d"}, "no such file"),
        ("mv", {"source": "c", "destination": "new"}, {"result": "'c' moved to 'new'"}),
        ("mv", {"source": "a.txt", "destination": "docs"}, "exists there"),
        ("mv", {"source": "a.txt", "destination": "b.txt"}, "no directory"),
        ("mv", {"source": "a.txt", "destination": "z.txt"}, {"result": "'a.txt' moved to 'z.txt'"}),
        ("mv", {"source": "new", "destination": "new"}, "into itself"),
        ("cp", {"source": "new", "destination": "docs"}, {"result": "'new' copied to 'docs'"}),
        ("cp", {"source": "z.txt", "destination": "a/b"}, "is a path"),
        ("rmdir", {"dir_name": "new"}, "not empty"),
        ("rmdir", {"dir_name": "z.txt"}, "no such directory"),
        ("cd", {"folder": "new"}, {"current_working_directory": "new"}),
        ("rm", {"file_name": "c"}, {"result": "'c' removed"}),
        ("rm", {"file_name": "c"}, "no such file"),
        ("cd", {"folder": "/"}, {"current_working_directory": "home"}),
        ("rmdir", {"dir_name": "new"}, {"result": "'new' removed"}),
        ("find", {"path": "docs"}, {"matches": ["docs/a.txt", "docs/new", "docs/new/c"]}),
    ]),
    "posts": ("TwitterAPI", NUMBERED, [
        ("post_tweet", {"content": "x"}, "not authenticated"),
        ("authenticate_twitter", {"username": "john", "password": "no"}, {"authentication_status": False}),
        ("authenticate_twitter", {"username": "john", "password": "john123"}, {"authentication_status": True}),
        ("posting_get_login_status", {}, {"login_status": True}),
        ("post_tweet", {"content": "New", "tags": ["#X"]},
         {"id": 1, "username": "john", "content": "New", "tags": ["#X"], "mentions": []}),
        ("mention", {"tweet_id": 1, "mentioned_usernames": ["@ann"]}, {"mention_status": "Users mentioned successfully"}),
        ("mention", {"tweet_id": 2, "mentioned_usernames": []}, "no tweet 2"),
        ("retweet", {"tweet_id": 0}, {"retweet_status": "Successfully retweeted"}),
        ("retweet", {"tweet_id": 0}, {"retweet_status": "Already retweeted"}),
        ("comment", {"tweet_id": 0, "comment_content": "!"}, {"comment_status": "Comment added successfully"}),
        ("get_tweet_comments", {"tweet_id": 0}, [{"username": "john", "content": "!"}]),
        ("follow_user", {"username_to_follow": "bob"}, {"follow_status": False}),
        ("follow_user", {"username_to_follow": "ann"}, {"follow_status": True}),
        ("unfollow_user", {"username_to_unfollow": "alice"}, {"unfollow_status": True}),
        ("unfollow_user", {"username_to_unfollow": "alice"}, {"unfollow_status": False}),
        ("list_all_following", {}, {"following_list": ["bob", "ann"]}),
        ("get_tweet", {"tweet_id": 1},
         {"id": 1, "username": "john", "content": "New", "tags": ["#X"], "mentions": ["@ann"]}),
        ("search_tweets", {"keyword": "hi"}, [{"id": 0, "username": "ann", "content": "Hi", "tags": ["#x"], "mentions": []}]),
        ("get_user_tweets", {"username": "nobody"}, []),
        ("get_user_stats", {"username": "john"}, {"tweet_count": 1, "following_count": 2, "retweet_count": 1}),
    ]),
    "tickets": ("TicketAPI", TICKET, [
        ("create_ticket", {"title": "x"}, "not signed in"),
        ("get_user_tickets", {}, "not signed in"),
        ("ticket_login", {"username": "eve", "password": ""}, {"success": False}),
        ("ticket_get_login_status", {}, {"login_status": False}),
        ("ticket_login", {"username": "eve", "password": "p"}, {"success": True}),
        ("create_ticket", {"title": "x", "priority": 6}, "between 1 and 5"),
        ("create_ticket", {"title": "x", "priority": 5},
         {"id": 1, "title": "x", "description": "", "status": "Open", "priority": 5, "created_by": "eve"}),
        ("edit_ticket", {"ticket_id": 7, "updates": {"priority": 2, "title": None}},
         {"status": "Ticket 7 has been updated successfully."}),
        ("edit_ticket", {"ticket_id": 7, "updates": {"owner": "x"}}, "owner"),
        ("resolve_ticket", {"ticket_id": 7, "resolution": "Off and on."},
         {"status": "Ticket 7 has been resolved successfully."}),
        ("resolve_ticket", {"ticket_id": 7, "resolution": ""}, "resolved already"),
        ("get_ticket", {"ticket_id": 7},
         {"id": 7, "title": "t", "status": "Resolved", "created_by": "eve", "priority": 2, "resolution": "Off and on."}),
        ("close_ticket", {"ticket_id": 1}, {"status": "Ticket 1 has been closed successfully."}),
        ("close_ticket", {"ticket_id": 9}, "no ticket 9"),
        ("get_user_tickets", {"status": "closed"},
         [{"id": 1, "title": "x", "description": "", "status": "Closed", "priority": 5, "created_by": "eve"}]),
        ("logout", {}, {"success": True}),
        ("logout", {}, {"success": False}),
    ]),
    "messages": ("MessageAPI", {"MessageAPI": {"inbox": []}}, [
        ("send_message", {"receiver_id": "USR001", "message": "x"}, "no user is signed in"),
        ("message_login", {"user_id": "USR9"}, {"login_status": False, "message": "User 'USR9' not found."}),
        ("get_user_id", {"user": "Bob"}, {"user_id": "USR002"}),
        ("get_user_id", {"user": "bob"}, "no user bob"),
        ("message_login", {"user_id": "USR001"}, {"login_status": True, "message": "User 'USR001' logged in."}),
        ("message_get_login_status", {}, {"login_status": True}),
        ("add_contact", {"user_name": "Kim"},
         {"added_status": True, "user_id": "USR005", "message": "Contact 'Kim' added successfully."}),
        ("add_contact", {"user_name": "Kim"}, "already"),
        ("list_users", {}, {"user_list": ["Alice", "Bob", "Catherine", "Daniel", "Kim"]}),
        ("send_message", {"receiver_id": "USR005", "message": "One"},
         {"sent_status": True, "message_id": 4, "message": "Message sent to 'USR005' successfully."}),
        ("send_message", {"receiver_id": "USR005", "message": "Two"},
         {"sent_status": True, "message_id": 5, "message": "Message sent to 'USR005' successfully."}),
        ("send_message", {"receiver_id": "USR6", "message": "Two"}, "no receiver USR6"),
        ("search_messages", {"keyword": "tw"}, {"results": [{"receiver_id": "USR005", "message": "Two"}]}),
        ("get_message_stats", {}, {"stats": {"received_count": 2, "total_contacts": 1}}),
        ("delete_message", {"receiver_id": "USR005"},
         {"deleted_status": True, "receiver_id": "USR005",
          "message": "Receiver USR005's latest message deleted successfully."}),
        ("view_messages_sent", {}, {"messages": {"USR005": ["One"]}}),
        ("delete_message", {"receiver_id": "USR001"}, "no message to USR001"),
    ]),
    "maths": ("MathAPI", {}, [
        ("logarithm", {"value": 20, "base": 10, "precision": 2}, {"result": 1.3}),
        ("logarithm", {"value": 0, "base": 10, "precision": 2}, "failed"),
        ("square_root", {"number": 2, "precision": 5}, {"result": 1.4142}),
        ("mean", {"numbers": [3, 16, 60]}, {"result": 79 / 3}),
        ("mean", {"numbers": []}, "failed"),
        ("standard_deviation", {"numbers": [2, 4, 4, 4, 5, 5, 7, 9]}, {"result": 2.0}),
        ("si_unit_conversion", {"value": 2, "unit_in": "km", "unit_out": "cm"}, {"result": 200000.0}),
        ("si_unit_conversion", {"value": 2, "unit_in": "km", "unit_out": "kg"}, "not supported"),
        ("imperial_si_conversion", {"value": 20, "unit_in": "celsius", "unit_out": "fahrenheit"}, {"result": 68.0}),
        ("imperial_si_conversion", {"value": 68, "unit_in": "fahrenheit", "unit_out": "celsius"}, {"result": 20.0}),
        ("imperial_si_conversion", {"value": 2, "unit_in": "in", "unit_out": "cm"}, {"result": 5.08}),
        ("imperial_si_conversion", {"value": 2, "unit_in": "cm", "unit_out": "cm"}, {"result": 2}),
        ("add", {"a": 1, "b": 2}, {"result": 3.0}),
        ("subtract", {"a": 1, "b": 2}, {"result": -1.0}),
        ("multiply", {"a": 3, "b": 2}, {"result": 6.0}),
        ("divide", {"a": 3, "b": 2}, {"result": 1.5}),
        ("divide", {"a": 3, "b": 0}, "failed"),
        ("power", {"base": 2, "exponent": 10}, {"result": 1024.0}),
        ("power", {"base": 9e99, "exponent": 1e9}, "failed"),
        ("absolute_value", {"number": -2}, {"result": 2.0}),
        ("round_number", {"number": 2.345, "decimal_places": 1}, {"result": 2.3}),
        ("percentage", {"part": 1, "whole": 4}, {"result": 25.0}),
        ("min_value", {"numbers": [3, 1]}, {"result": 1.0}),
        ("max_value", {"numbers": [3, 1]}, {"result": 3.0}),
        ("sum_values", {"numbers": [0.1] * 10}, {"result": 1.0}),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script(name: str) -> None:
    api, config, calls = SCRIPTS[name]
    session = Session([api], config)
    for function, arguments, wanted in calls:
        found = json.loads(session.call(Call(function, arguments)))
        if isinstance(wanted, str):
            assert list(found) == ["error"] and wanted in found["error"], (function, found)
        else:
            assert found == wanted, function


def test_every_function_is_in_a_script() -> None:
    for name, api in APIS.items():
        public = {key for key, value in vars(api).items() if inspect.isfunction(value) and not key.startswith("_")}
        assert public == {call[0] for _, (of, _, calls) in SCRIPTS.items() if of == name for call in calls}, name


def test_the_state_that_is_compared() -> None:
    one, other = Session(["GorillaFileSystem"], FILES), Session(["GorillaFileSystem"], FILES)
    assert one.state == other.state
    one.call(Call("cd", {"folder": "docs"}))
    assert one.state == other.state, "where one is does not count"
    one.call(Call("touch", {"file_name": "x"}))
    assert one.state != other.state and other.state == Session(["GorillaFileSystem"], FILES).state, "nothing is shared"


def test_what_is_no_function_of_the_session() -> None:
    session = Session(["MathAPI"], {})
    for name in ("cd", "__init__", "_signed_in", "root", "mean.x", ""):
        assert "no function" in session.call(Call(name, {}))
    assert "error" in session.call(Call("mean", {"values": [1]}))


def test_copies_of_copies_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minnow.tasks.apis._MOST_CHARACTERS", 2000)
    session = Session(["GorillaFileSystem"], FILES)
    for number in range(12):
        session.call(Call("mkdir", {"dir_name": f"d{number}"}))
        for source in ("docs", *(f"d{before}" for before in range(number))):
            last = session.call(Call("cp", {"source": source, "destination": f"d{number}"}))
    assert "no space" in last and len(repr(session.state)) < 5000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_arguments_come_back_as_text(data: st.DataObject) -> None:
    session = Session(APIS, {**FILES, **NUMBERED, **TICKET})
    session.call(Call("authenticate_twitter", {"username": "john", "password": "john123"}))
    session.call(Call("message_login", {"user_id": "USR001"}))
    for _ in range(4):
        api = data.draw(st.sampled_from(list(APIS.values())))
        name = data.draw(st.sampled_from([key for key in vars(api) if not key.startswith("_")]))
        method = getattr(api, name)
        parameters = list(inspect.signature(method).parameters)[1:] if callable(method) else []
        arguments = {key: data.draw(VALUES) for key in parameters if data.draw(st.booleans())}
        json.loads(session.call(Call(name, arguments)))
    assert set(session.state) == set(APIS)
