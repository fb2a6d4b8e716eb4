"""What a person sees of the status page and does to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selenium.common.exceptions import TimeoutException
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser.served import Served

PATIENCE_SECONDS = 15.0
LOOK_SECONDS = 0.05


class Page:
    """Be the browser with the page in it."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, served: Served) -> None:
        """Load the page, without a token."""
        self.driver.get(served.url)

    def show(self, served: Served) -> None:
        """Load the page, give it a good token, and wait until it shows the compute."""
        self.open(served)
        self.until(lambda: self.is_shown("ask"))
        self.give(served.good_token)
        self.until(lambda: self.is_shown("view") and self.text("state-text") != "not known yet")

    def give(self, token: str) -> None:
        """Paste into the form, which is faster than to type, and send it off."""
        self.element("token").click()
        self.driver.execute_cdp_cmd("Input.insertText", {"text": token})
        self.press(Keys.ENTER)

    def try_now(self) -> None:
        """Press the button of that name, which may be about to go since the page has found the compute by itself."""
        self.run("document.getElementById('retry-now').click()")

    def element(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def elements(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def is_shown(self, name: str) -> bool:
        return self.element(name).is_displayed()

    def text(self, name: str) -> str:
        """Return the text of an element, of a hidden one too."""
        return str(self.driver.execute_script("return document.getElementById(arguments[0]).textContent", name))

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements that are selected, at one moment."""
        script = "return Array.from(document.querySelectorAll(arguments[0]), (each) => each.textContent)"
        return list(self.driver.execute_script(script, selector))

    def lit(self) -> list[str]:
        """Return the states that the diagram shows as the present one."""
        script = "return Array.from(document.querySelectorAll('.state.lit'), (box) => box.dataset.state)"
        return list(self.driver.execute_script(script))

    def focused(self) -> str:
        """Return the name of the element that has the focus."""
        return str(self.driver.execute_script("return document.activeElement.id"))

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def resize(self, width: int, height: int = 900) -> None:
        """Make the page that wide, whatever a window can be."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def emulate(self, **features: str) -> None:
        """Wish for dark colours or less motion; without arguments for nothing."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something can be seen."""
        wait = WebDriverWait(self.driver, PATIENCE_SECONDS, poll_frequency=LOOK_SECONDS)
        try:
            wait.until(lambda _driver: condition())
        except TimeoutException:
            raise AssertionError(f"the page shows {self.run('return document.body.innerText')!r}") from None

    def until_state(self, name: str) -> None:
        """Wait until the page shows a state, in words and in the diagram."""
        self.until(lambda: self.text("state-text") == name.replace("_", " ") and self.lit() == [name])
