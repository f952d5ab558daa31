"""The model behind an OpenAI-compatible API, with the loop guard in its stream and a router to a larger one."""
