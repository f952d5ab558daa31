"""Posts of a social network, tickets of a help desk, and messages between colleagues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minnow.tasks.apis.api import Result, required


class Posts:
    """One user's account."""

    def __init__(self, config: Result) -> None:
        self.username: str = config.get("username", "john")
        self.password: str = config.get("password", "john123")
        self.authenticated: bool = config.get("authenticated", False)
        self.tweets: dict[int, Result] = {int(key): each for key, each in config.get("tweets", {}).items()}
        self.comments: dict[int, list[Result]] = {int(key): each for key, each in config.get("comments", {}).items()}
        self.retweets: dict[str, list[int]] = config.get("retweets", {})
        self.following_list: list[str] = config.get("following_list", ["alice", "bob"])
        self.tweet_counter: int = config.get("tweet_counter", 0)

    def _signed_in(self) -> None:
        required(self.authenticated, "the user is not authenticated; authenticate first")

    def _tweet(self, tweet_id: int) -> Result:
        required(tweet_id in self.tweets, f"there is no tweet {tweet_id}")
        return self.tweets[tweet_id]

    def authenticate_twitter(self, username: str, password: str) -> Result:
        """Sign in."""
        right = (username, password) == (self.username, self.password)
        self.authenticated = self.authenticated or right
        return {"authentication_status": right}

    def posting_get_login_status(self) -> Result:
        """Whether the user is signed in."""
        return {"login_status": self.authenticated}

    def post_tweet(self, content: str, tags: Sequence[str] = (), mentions: Sequence[str] = ()) -> Result:
        """Post a tweet."""
        self._signed_in()
        number = self.tweet_counter
        self.tweets[number] = {
            "id": number, "username": self.username, "content": content, "tags": list(tags), "mentions": list(mentions)
        }  # fmt: skip
        self.tweet_counter += 1
        return self.tweets[number]

    def retweet(self, tweet_id: int) -> Result:
        """Pass a tweet on."""
        self._signed_in()
        self._tweet(tweet_id)
        mine = self.retweets.setdefault(self.username, [])
        if tweet_id in mine:
            return {"retweet_status": "Already retweeted"}
        mine.append(tweet_id)
        return {"retweet_status": "Successfully retweeted"}

    def comment(self, tweet_id: int, comment_content: str) -> Result:
        """Comment on a tweet."""
        self._signed_in()
        self._tweet(tweet_id)
        self.comments.setdefault(tweet_id, []).append({"username": self.username, "content": comment_content})
        return {"comment_status": "Comment added successfully"}

    def mention(self, tweet_id: int, mentioned_usernames: Sequence[str]) -> Result:
        """Mention users in a tweet."""
        self._tweet(tweet_id)["mentions"].extend(mentioned_usernames)
        return {"mention_status": "Users mentioned successfully"}

    def follow_user(self, username_to_follow: str) -> Result:
        """Follow a user."""
        self._signed_in()
        new = username_to_follow not in self.following_list
        if new:
            self.following_list.append(username_to_follow)
        return {"follow_status": new}

    def unfollow_user(self, username_to_unfollow: str) -> Result:
        """Follow a user no longer."""
        self._signed_in()
        known = username_to_unfollow in self.following_list
        if known:
            self.following_list.remove(username_to_unfollow)
        return {"unfollow_status": known}

    def list_all_following(self) -> Result:
        """Whom the user follows."""
        self._signed_in()
        return {"following_list": self.following_list}

    def get_tweet(self, tweet_id: int) -> Result:
        """A tweet."""
        return self._tweet(tweet_id)

    def get_user_tweets(self, username: str) -> list[Result]:
        """The tweets of a user."""
        return [each for each in self.tweets.values() if each["username"] == username]

    def search_tweets(self, keyword: str) -> list[Result]:
        """The tweets with a word in their text or among their tags."""
        word = keyword.lower()
        return [
            each
            for each in self.tweets.values()
            if word in each["content"].lower() or word in [tag.lower() for tag in each["tags"]]
        ]

    def get_tweet_comments(self, tweet_id: int) -> list[Result]:
        """The comments on a tweet."""
        self._tweet(tweet_id)
        return self.comments.get(tweet_id, [])

    def get_user_stats(self, username: str) -> Result:
        """How much a user posts, follows and passes on."""
        return {
            "tweet_count": len(self.get_user_tweets(username)),
            "following_count": len(self.following_list) if username == self.username else 0,
            "retweet_count": len(self.retweets.get(username, [])),
        }


class Tickets:
    """Any name and password sign in."""

    def __init__(self, config: Result) -> None:
        self.ticket_queue: list[Result] = config.get("ticket_queue", [])
        self.ticket_counter: int = config.get("ticket_counter", 1)
        self.current_user: str | None = config.get("current_user")

    def _ticket(self, ticket_id: int) -> Result:
        found = next((each for each in self.ticket_queue if each["id"] == ticket_id), None)
        required(found is not None, f"there is no ticket {ticket_id}")
        return found or {}

    def create_ticket(self, title: str, description: str = "", priority: int = 1) -> Result:
        """Create a ticket of priority 1 to 5."""
        required(self.current_user, "the user is not signed in; sign in to create a ticket")
        required(1 <= priority <= 5, "the priority must be between 1 and 5")
        ticket = {
            "id": self.ticket_counter, "title": title, "description": description, "status": "Open",
            "priority": priority, "created_by": self.current_user,
        }  # fmt: skip
        self.ticket_queue.append(ticket)
        self.ticket_counter += 1
        return ticket

    def get_ticket(self, ticket_id: int) -> Result:
        """A ticket."""
        return self._ticket(ticket_id)

    def close_ticket(self, ticket_id: int) -> Result:
        """Close a ticket."""
        return self._move(ticket_id, "Closed")

    def resolve_ticket(self, ticket_id: int, resolution: str) -> Result:
        """Resolve a ticket."""
        return self._move(ticket_id, "Resolved", resolution=resolution)

    def _move(self, ticket_id: int, status: str, **more: Any) -> Result:
        ticket = self._ticket(ticket_id)
        required(ticket["status"] != status, f"ticket {ticket_id} is {status.lower()} already")
        ticket.update(status=status, **more)
        return {"status": f"Ticket {ticket_id} has been {status.lower()} successfully."}

    def edit_ticket(self, ticket_id: int, updates: Result) -> Result:
        """Change the title, description, status or priority of a ticket."""
        ticket = self._ticket(ticket_id)
        unknown = updates.keys() - {"title", "description", "status", "priority"}
        required(not unknown, f"these cannot be changed: {', '.join(sorted(unknown))}")
        ticket.update({key: value for key, value in updates.items() if value is not None})
        return {"status": f"Ticket {ticket_id} has been updated successfully."}

    def ticket_login(self, username: str, password: str) -> Result:
        """Sign in."""
        if username and password:
            self.current_user = username
        return {"success": bool(username and password)}

    def ticket_get_login_status(self) -> Result:
        """Whether somebody is signed in."""
        return {"login_status": bool(self.current_user)}

    def logout(self) -> Result:
        """Sign out."""
        was, self.current_user = self.current_user, None
        return {"success": bool(was)}

    def get_user_tickets(self, status: str | None = None) -> list[Result]:
        """The user's tickets, or those of a status."""
        required(self.current_user, "the user is not signed in; sign in to see tickets")
        mine = [each for each in self.ticket_queue if each["created_by"] == self.current_user]
        return [each for each in mine if not status or each["status"].lower() == status.lower()]


class Messages:
    """A workspace; ``inbox`` holds ``{receiver: text}``, the latest last."""

    def __init__(self, config: Result) -> None:
        names = ("Alice", "Bob", "Catherine", "Daniel")
        self.user_map: dict[str, str] = config.get(
            "user_map", {name: f"USR{place:03}" for place, name in enumerate(names, 1)}
        )
        self.user_count: int = config.get("user_count", len(names))
        self.inbox: list[dict[str, str]] = config.get(
            "inbox",
            [
                {"USR002": "My name is Alice. I want to connect."},
                {"USR003": "Could you upload the file?"},
                {"USR004": "Could you upload the file?"},
            ],
        )
        self.message_count: int = config.get("message_count", 3)
        self.current_user: str | None = config.get("current_user")

    def _signed_in(self) -> None:
        required(self.current_user, "no user is signed in")

    def _sent(self) -> list[tuple[str, str]]:
        self._signed_in()
        return [pair for message in self.inbox for pair in message.items()]

    def list_users(self) -> Result:
        """All users."""
        return {"user_list": list(self.user_map)}

    def get_user_id(self, user: str) -> Result:
        """The id of a user by name."""
        required(user in self.user_map, f"there is no user {user}")
        return {"user_id": self.user_map[user]}

    def message_login(self, user_id: str) -> Result:
        """Sign a user in by id."""
        known = user_id in self.user_map.values()
        if known:
            self.current_user = user_id
        return {"login_status": known, "message": f"User '{user_id}' {'logged in' if known else 'not found'}."}

    def message_get_login_status(self) -> Result:
        """Whether a user is signed in."""
        return {"login_status": bool(self.current_user)}

    def send_message(self, receiver_id: str, message: str) -> Result:
        """Send a message to a user by id."""
        self._signed_in()
        required(receiver_id in self.user_map.values(), f"there is no receiver {receiver_id}")
        self.inbox.append({receiver_id: message})
        self.message_count += 1
        said = f"Message sent to '{receiver_id}' successfully."
        return {"sent_status": True, "message_id": self.message_count, "message": said}

    def delete_message(self, receiver_id: str) -> Result:
        """Delete the latest message to a receiver."""
        self._signed_in()
        places = [place for place, message in enumerate(self.inbox) if receiver_id in message]
        required(places, f"there is no message to {receiver_id}")
        del self.inbox[places[-1]]
        said = f"Receiver {receiver_id}'s latest message deleted successfully."
        return {"deleted_status": True, "receiver_id": receiver_id, "message": said}

    def view_messages_sent(self) -> Result:
        """All messages by receiver."""
        found: dict[str, list[str]] = {}
        for receiver, text in self._sent():
            found.setdefault(receiver, []).append(text)
        return {"messages": found}

    def add_contact(self, user_name: str) -> Result:
        """Add a user."""
        required(user_name not in self.user_map, f"there is a user {user_name} already")
        self.user_count += 1
        number = f"USR{self.user_count:03}"
        required(number not in self.user_map.values(), f"there is a user id {number} already")
        self.user_map[user_name] = number
        return {"added_status": True, "user_id": number, "message": f"Contact '{user_name}' added successfully."}

    def search_messages(self, keyword: str) -> Result:
        """Messages that contain a text."""
        word = keyword.lower()
        return {
            "results": [
                {"receiver_id": receiver, "message": text} for receiver, text in self._sent() if word in text.lower()
            ]
        }

    def get_message_stats(self) -> Result:
        """How many messages there are, and to how many users."""
        sent = self._sent()
        return {"stats": {"received_count": len(sent), "total_contacts": len({receiver for receiver, _ in sent})}}
