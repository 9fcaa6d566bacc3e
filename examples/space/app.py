"""The page of `visipruner app` as a Hugging Face Space, which says by GRADIO_SERVER_NAME where to listen."""

import os

from visipruner.app import serve

if __name__ == "__main__":
    model = os.environ.get("MODEL", "testbed")
    serve(model, {"allow_download": "MODEL" in os.environ})
