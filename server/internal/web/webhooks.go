package web

import (
	"context"
	"net/http"

	"bmsota/api"
	"bmsota/server/internal/fleet"
)

// WebhookKeeper is what web needs of a *fleet.Fleet to manage who is told of events.
type WebhookKeeper interface {
	Webhooks(ctx context.Context, by fleet.Identity) ([]fleet.WebhookView, error)
	AddWebhook(ctx context.Context, by fleet.Identity, address string, events []fleet.NoticeType) (fleet.Webhook, error)
	RemoveWebhook(ctx context.Context, by fleet.Identity, id string) error
	TestWebhook(ctx context.Context, by fleet.Identity, id string) error
}

func (h *handler) webhookRoutes() []route {
	admin, named := fleet.RightAdminister, []api.Code{api.CodeNotFound}
	return []route{
		{http.MethodGet, "/webhooks", "listWebhooks", "List webhooks, and how their deliveries go", admin, paged, []api.Webhook{}, nil, reads(h.listWebhooks)},
		{http.MethodPost, "/webhooks", "addWebhook", "Make a webhook, whose secret this answer alone shows; a second one to the address is a conflict", admin, nil,
			api.AddWebhookResponse{}, []api.Code{api.CodeConflict, api.CodeRefused}, takes(h.addWebhook)},
		{http.MethodDelete, "/webhooks/{id}", "removeWebhook", "Delete a webhook and what waits for it", admin, nil, nil, named, reads(h.removeWebhook)},
		{http.MethodPost, "/webhooks/{id}/test", "testWebhook", "Send a webhook an event that tells of nothing", admin, nil, nil, named, reads(h.testWebhook)},
	}
}

func (h *handler) listWebhooks(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	hooks, err := h.cfg.Fleet.Webhooks(r.Context(), by)
	if err == nil {
		hooks, err = cutByName(w, r, hooks, func(v fleet.WebhookView) string { return v.ID })
	}
	out := make([]api.Webhook, 0, len(hooks))
	for _, v := range hooks {
		events := make([]string, 0, len(v.Events))
		for _, e := range v.Events {
			events = append(events, string(e))
		}
		out = append(out, api.Webhook{ID: v.ID, URL: v.URL, Events: events, CreatedAt: v.CreatedAt.UTC(), CreatedBy: v.CreatedBy, Waiting: v.Waiting,
			Dropped: v.Dropped, SucceededAt: v.SucceededAt.UTC(), FailedAt: v.FailedAt.UTC(), Failure: v.Failure, Failures: v.Failures, RetryAt: v.RetryAt.UTC()})
	}
	return out, err
}

func (h *handler) addWebhook(_ http.ResponseWriter, r *http.Request, by fleet.Identity, in api.AddWebhookRequest) (any, error) {
	var events []fleet.NoticeType
	for _, e := range in.Events {
		events = append(events, fleet.NoticeType(e))
	}
	made, err := h.cfg.Fleet.AddWebhook(r.Context(), by, in.URL, events)
	if err != nil {
		return nil, err
	}
	return api.AddWebhookResponse{ID: made.ID, Secret: string(made.Secret)}, nil
}

func (h *handler) removeWebhook(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	return nil, h.cfg.Fleet.RemoveWebhook(r.Context(), by, r.PathValue("id"))
}

func (h *handler) testWebhook(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	return nil, h.cfg.Fleet.TestWebhook(r.Context(), by, r.PathValue("id"))
}
