#include "ota_status_logger.h"

#include <cstdio>
#include <cstring>

#include "esp_log.h"
#include "ota_manager.h"

namespace {

const char *const TAG = "ota";
constexpr int step = 10;   // percent

class StatusLogger {
public:
    void send_to(ota_status_log_t sink, void *ctx)
    {
        sink_ = sink;
        ctx_ = ctx;
    }

    void say(const ota_status_t &s)
    {
        const bool same = std::strcmp(s.phase, last_.phase) == 0 && std::strcmp(s.reason, last_.reason) == 0;
        if (same && s.progress_pct / step == last_.progress_pct / step) {
            return;
        }
        last_ = s;
        char line[256];
        int n = std::snprintf(line, sizeof line, "%s: %s", s.phase, s.message);
        n = append(line, n, s.progress_pct > 0, " (%d %%)", s.progress_pct);
        n = append(line, n, s.reason[0] != '\0', " [%s]", s.reason);
        append(line, n, s.available_version[0] != '\0', ", offered is %s", s.available_version);
        if (sink_ != nullptr) {
            sink_(line, ctx_);
        } else {
            ESP_LOGI(TAG, "%s", line);
        }
    }

private:
    template <size_t size, typename T>
    static int append(char (&line)[size], int at, bool wanted, const char *format, T value)
    {
        if (!wanted || at < 0 || static_cast<size_t>(at) >= size) {
            return at;
        }
        const int n = std::snprintf(line + at, size - static_cast<size_t>(at), format, value);
        return n < 0 ? at : at + n;
    }

    ota_status_log_t sink_ = nullptr;
    void *ctx_ = nullptr;
    ota_status_t last_ = {};
};

StatusLogger logger;

} // namespace

esp_err_t ota_status_logger_init(ota_status_log_t sink, void *ctx)
{
    logger.send_to(sink, ctx);
    return ESP_OK;
}

void ota_status_logger_on_status(const char *, size_t, void *)
{
    ota_status_t s;
    if (ota_manager_get_status(&s) == ESP_OK) {
        logger.say(s);
    }
}
