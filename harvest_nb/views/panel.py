"""The widgets of a chat in a notebook: something to type into, the flow, Stop, and what it has cost so far."""

from __future__ import annotations

import asyncio
import contextlib
import html
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harvest_nb.errors import HarvestError, SessionError
from harvest_nb.session.chat import Chat
from harvest_nb.session.open import DEFAULT_MODEL, LIVE
from harvest_nb.session.result import RunResult
from harvest_nb.views.live import HtmlRows, LiveFlow
from harvest_nb.views.permission import CellQuestions

__all__ = ["Panel"]

_HELP = (
    "Type a prompt; Enter sends it, Shift-Enter begins a new line. Stop ends the turn and keeps the session."
)
_SENT = "\x04"
# A text area tells no keys. Its value is what arrives in order, however fast somebody types, so Enter is a sign in it.
_KEYS = """<img src="data:," alt="" style="display:none" onerror="
const listen = (again) => {
  const chat = this.closest('.harvest-chat');  // there once the view has been put into the page
  if (!chat) return again &amp;&amp; setTimeout(listen, 50, again - 1);
  if (chat.dataset.keys) return;
  chat.dataset.keys = 'yes';
  chat.addEventListener('keydown', (event) => {
    const area = event.target;
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing || area.tagName !== 'TEXTAREA') return;
    event.preventDefault();
    event.stopPropagation();
    area.value += '\\x04';
    area.dispatchEvent(new Event('input', {bubbles: true}));
  }, true);
};
listen(200);
">"""


class Panel:
    """The widgets. Their handlers may run in another thread (a kernel's subshell), so they only send word."""

    def __init__(self, chat: Chat, *, ask: bool) -> None:
        import ipywidgets

        w: Any = ipywidgets  # it makes its names at run time
        self._w, self._chat, self.loop = w, chat, asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._ending: asyncio.Task[None] | None = None
        self._questions = CellQuestions(stop=self._stop) if ask else None
        if self._questions is not None:
            options = replace(chat.setup.options, can_use_tool=self._questions)
            chat.setup = replace(chat.setup, options=options)
        wide = w.Layout(width="auto")
        self._head = w.HTML()
        # Upside down, so that the newest line is the one in sight when there are more than fit.
        look = w.Layout(max_height="36em", overflow="auto", width="100%", flex_flow="column-reverse")
        self._flow = w.VBox([w.HTML(_HELP)], layout=look)
        self.input = w.Textarea(placeholder="What should the agent do?", rows=3, layout=wide)
        self.send = w.Button(description="Send", button_style="primary", icon="paper-plane")
        self.stop = w.Button(description="Stop", button_style="warning", icon="stop", disabled=True)
        self.end = w.Button(
            description="End session", icon="power-off", tooltip="End the session, remove its sandbox"
        )
        for name, button, action in (
            ("send", self.send, self._send), ("stop", self.stop, self._stop), ("end", self.end, self.end_soon)
        ):  # fmt: skip
            button.add_class(f"harvest-{name}")
            button.on_click(lambda _, action=action: self.loop.call_soon_threadsafe(action))
        self.input.add_class("harvest-input")
        self.input.observe(self._typed, names="value")
        questions = [] if self._questions is None else [self._questions.view]
        buttons = w.HBox([self.send, self.stop, self.end])
        keys = w.HTML(_KEYS, layout=w.Layout(height="0", margin="0"))
        self.view = w.VBox([self._head, self._flow, *questions, self.input, buttons, keys], layout=wide)
        self.view.add_class("harvest-chat")
        self._state("starting the sandbox …")
        self._warming = self.loop.create_task(self._warm())

    async def _warm(self) -> None:
        try:
            session = await self._chat.open()
            await session.start()
            told = "ready"
        except HarvestError as error:
            told = f"could not start: {error}"
        if self.stop.disabled and not self._closed:  # a prompt that is under way says more
            self._state(told)

    def _state(self, text: str) -> None:
        chat, cost = self._chat, self._chat.cost_usd
        setup = chat.setup
        model = setup.options.model or (DEFAULT_MODEL if setup.endpoint != LIVE else "the CLI's own model")
        parts = [
            f"<b>{html.escape(text)}</b>",
            html.escape(model),
            "no cost yet" if cost is None else f"${cost:.4f} so far",
            f"{(said := len(chat.results))} prompt{'s' * (said != 1)}",
            html.escape(f"endpoint {setup.endpoint}"),
        ]
        self._head.value = " · ".join(parts)

    def _typed(self, change: Mapping[str, Any]) -> None:
        if _SENT in change["new"]:
            self.loop.call_soon_threadsafe(self._send)

    def _send(self) -> None:
        self.input.value = self.input.value.replace(_SENT, "")
        prompt = self.input.value.strip()
        if prompt and (self._task is None or self._task.done()) and not (self._closed or self._chat.busy):
            self.input.value = ""
            self._task = self.loop.create_task(self._quietly(prompt))

    async def _quietly(self, prompt: str) -> None:
        with contextlib.suppress(HarvestError):  # `say` has shown it
            await self.say(prompt)

    async def say(self, prompt: str) -> RunResult:
        """Send a prompt and show what comes.

        Raises:
            SessionError: another prompt is being answered, whose view stays as it is. See `Chat.ask`.
        """
        if self._chat.busy:
            raise SessionError("Another prompt is being answered", hint="wait for it, or cancel it")
        widget = self._w.HTML()
        surface = HtmlRows(lambda content: setattr(widget, "value", content))
        self._flow.children = [widget, *(self._flow.children if self._chat.results else ())]
        flow = LiveFlow(surface=surface, own_figures=True)
        flow.add("you", prompt)
        self.send.disabled, self.stop.disabled = True, False
        self._state("working …")
        try:
            result = await self._chat.ask(prompt, on_message=flow.show)
            flow.end(result)
            self._state(
                "ready"
                if result.status != "died"
                else "the sandbox has gone; the next prompt makes a new one"
            )
            return result
        except HarvestError as error:
            flow.add("error", str(error))
            self._state("failed")
            raise
        except asyncio.CancelledError:
            flow.add("cancelled", "stopped before it began")
            self._state("ready")
            raise
        finally:
            flow.close()
            self.send.disabled, self.stop.disabled = self._closed, True

    def bundle(self) -> dict[str, Any]:
        """The widget for a live page, and a picture of it for one that has no kernel."""
        texts = [self._head.value, *(child.value for child in reversed(self._flow.children))]
        buttons = "".join(
            f"<button disabled>{b.description}</button> " for b in (self.send, self.stop, self.end)
        )
        field = f'<textarea rows="2" style="width:100%" disabled placeholder="{self.input.placeholder}"></textarea>'
        picture = "".join(f"<div>{text}</div>" for text in (*texts, field, buttons))
        return {
            **self.view._repr_mimebundle_(),
            "text/html": f'<div style="border:1px solid #8886;border-radius:6px;padding:.6em">{picture}</div>',
        }

    def _stop(self) -> None:
        if self._questions is not None:
            self._questions.answer("deny")
        if self._chat.busy:
            self._stopping = self.loop.create_task(self._chat.cancel())
        elif self._task is not None and not self._task.done():
            self._task.cancel()

    def end_soon(self) -> None:
        """End the session; to be called in the loop's own thread."""
        if self._ending is None:
            self._ending = self.loop.create_task(self._close())

    async def close(self) -> None:
        """End the session; the view stays as it is. Safe to call twice, also while it is under way."""
        self.end_soon()
        assert self._ending is not None
        await asyncio.shield(self._ending)

    async def _close(self) -> None:
        self._closed = True
        self._state("ending …")
        for widget in (self.input, self.send, self.stop, self.end):
            widget.disabled = True
        try:
            await self._chat.close()
        except HarvestError as error:
            self._state(f"ended badly: {error}")
            raise
        self._state(f"ended, recorded in {self._chat.folder}")
