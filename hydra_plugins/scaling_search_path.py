"""The folders of configurations that plugins add, behind conf/ in Hydra's search path.

Hydra finds plugins in the namespace package `hydra_plugins`, and imports this at every start: it
must stay light.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class ScalingPlugins(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from scaling.config.plugins import conf_dirs
        from scaling.config.run_config import conf_dir

        # Other programs of this environment use Hydra too: their search paths stay as they are.
        mains = [
            str(element.path) for element in search_path.get_path() if element.provider == "main"
        ]
        if str(conf_dir()) in (main.removeprefix("file://") for main in mains):
            for folder in conf_dirs():
                search_path.append(provider="scaling.plugins", path=f"file://{folder.resolve()}")
